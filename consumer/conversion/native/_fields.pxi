"""Writes the fields of an event, of objects in it, and of items, from a record's slots.

Theory of operation. Each field that has a value is written as JSON at once (`_json`), so no payload is made. Rules,
refusals and warnings are those of the plain path (`consumer.conversion.fields`). A value in its usual spelling needs no
call of its rule (`_usual`), and neither does one that the rule remembers (`rules.Memory`).
"""

from consumer.conversion import decisions as decide
from consumer.conversion.amounts import is_zero
from consumer.conversion.decisions import note, note_once, sent_values
from consumer.conversion.layout import ComputedAt
from consumer.conversion.normalise import LeftOut as left_out
from consumer.conversion.rules import Memory, click_id_of, is_crawler, total

cdef enum:
    FEW = 32  # up to this number of digests, each is compared with each to find equal ones
    # What is found of a value: no digest, one of a known form, or `Unrecognised`.
    NO_DIGEST = 0
    KNOWN_DIGEST
    UNRECOGNISED
    ANY_NUMBER = 0x7FFFFFFF

# Looked up once.
cdef object LeftOut = left_out
cdef object MALFORMED = LeftOut.MALFORMED
cdef object NOT_WEB = decide.NOT_WEB
cdef object CRAWLER = decide.CRAWLER
cdef object NEGATIVE_QUANTITY = decide.REFUSALS["negative_quantity"]


@cython.final
cdef class At:
    """Where a value, or several, are found (`layout.At`), or how it is computed (`layout.ComputedAt`)."""

    cdef int slot, item
    cdef tuple below
    cdef bint in_slot  # the slot itself holds the value
    cdef object function  # None: it is not computed
    cdef tuple reads  # of what it is computed

    def __init__(self, place):
        if isinstance(place, ComputedAt):
            self.slot, self.item = 0, -1
            self.function, reads, self.below = place
            self.reads = tuple([(of_item, At(read)) for of_item, read in reads])
        else:
            self.slot, self.below, self.item = place
        self.in_slot = not self.below and self.function is None

    cdef object value(self, const Slot* slots):
        """Return the value; None if there is none."""
        return self.value_in(slots, slots)

    cdef object base(self, const Slot* slots, const Slot* of_event):
        """Return what the slot holds, or what is computed from an item (`slots`) and its event."""
        cdef list read
        if self.function is None:
            return thing(slots + self.slot)
        read = [(<At> at).value(slots if of_item else of_event) for of_item, at in self.reads]
        return self.function(read, ())

    cdef object value_in(self, const Slot* slots, const Slot* of_event):
        """The same as `value`, for an item of the event."""
        value = self.base(slots, of_event)
        for name in self.below:
            value = (<dict> value).get(name) if type(value) is dict else None
        return value

    cdef list values(self, const Slot* slots, Reader reader):
        """Return all values, in the order of `paths.walk`."""
        cdef list found = []
        cdef const Slot* slot = slots + self.slot
        cdef Py_ssize_t at
        if self.item < 0:
            gather(self.base(slots, reader.slots), self.below, 0, found)
        elif slot.kind == ITEM_SLOTS:
            for at in range(slot.size):
                gather(thing(reader.item_slots + slot.number + at * reader.item_width + self.item), self.below, 0, found)
        return found


cdef int gather(object value, tuple below, Py_ssize_t step, list found) except -1:
    """Add the values at the end of the steps from `step` on, below `value`; an empty step means each element."""
    if value is None:
        return 0
    if step == len(below):
        found.append(value)
    elif below[step]:
        if type(value) is dict:
            gather((<dict> value).get(below[step]), below, step + 1, found)
    elif type(value) is list:
        for each in <list> value:
            gather(each, below, step + 1, found)
    else:
        gather(value, below, step + 1, found)
    return 0


@cython.final
cdef class Field:
    """See `program.CompiledField`."""

    cdef bytes key
    cdef int way
    cdef At at
    cdef At gather
    cdef object rule
    cdef bint is_remembered  # the rule is a `Memory`
    cdef int most
    cdef tuple warnings
    cdef object refusal
    cdef object zero
    cdef bint web_only
    cdef bint gives_click_id, takes_click_id, is_agent
    cdef bint followed  # something else follows from what is sent: a click id, a warning
    cdef bytes constant
    cdef int mark
    cdef int usual

    def __init__(self, compiled):
        field = compiled.field
        self.key, self.way, self.usual = compiled.key, compiled.way, compiled.usual
        self.at, self.gather = at(compiled.at), at(compiled.gather)
        self.warnings, self.constant, self.mark = compiled.warnings, compiled.constant, compiled.mark
        self.rule, self.refusal, self.zero = field.ask, field.refusal, field.zero
        self.is_remembered = isinstance(self.rule, Memory)
        self.most = ANY_NUMBER if field.most is None else field.most
        self.web_only, self.is_agent = field.web_only, field.is_agent
        self.gives_click_id, self.takes_click_id = field.gives_click_id, field.takes_click_id
        self.followed = self.gives_click_id or self.is_agent


cdef At at(place):
    return None if place is None else At(place)


cdef inline bint begins_with_zero(object text):
    return type(text) is str and PyUnicode_IS_COMPACT_ASCII(text) and (<const unsigned char*> PyUnicode_DATA(text))[0] == c"0"


cdef bint is_among(const char* entries, Py_ssize_t size, const char* digest) noexcept:
    """Return whether these digits are among the entries, which are all of the same length."""
    cdef Py_ssize_t at = 0
    while at < size:
        if memcmp(entries + at, digest, 67) == 0:
            return True
        at += 67
    return False


cdef class Writing:
    """One event while it is written."""

    cdef Reader reader
    cdef Page page
    # What is known of the event so far.
    cdef object source
    cdef object address  # of its page, if there may be a click id in it
    cdef const unsigned char* clicked  # the click id in it, in the record's bytes
    cdef Py_ssize_t clicked_size  # 0: there is none, or `address` has to be asked
    cdef list warned
    cdef int marks
    cdef bint unrecognised  # of the last field, only `Unrecognised` values were written: it gets no mark
    cdef bint is_web
    cdef Digests digests  # that are due in the page

    cdef void begin(self):
        """Begin an event. Its JSON begins where the page ends."""
        self.warned, self.marks, self.address, self.clicked_size = None, 0, None, 0

    cdef void go_back(self, Py_ssize_t size) noexcept:
        """Discard what was written from there on."""
        self.page.size = size
        while self.digests.count and self.digests.place[self.digests.count - 1] >= size:
            self.digests.count -= 1

    cdef object write_field(self, Field field, const Slot* slots):
        """Write a field, or its constant if it has no value; return its refusal of the event, or None."""
        cdef Py_ssize_t before = self.page.size
        self.unrecognised = False
        refusal = self.write_value(field, slots) if field.at is not None or field.gather is not None else None
        if self.page.size == before and refusal is None:
            if field.takes_click_id:
                self.put_click_id(field)
            if field.constant is not None and self.page.size == before:
                self.page.put(field.key)
                self.page.put(field.constant)
                self.page.raw(b",", 1)
        if self.page.size != before and not self.unrecognised:
            self.marks |= field.mark
        return refusal

    cdef object write_value(self, Field field, const Slot* slots):
        if field.gather is not None:
            return self.several(field, field.gather.values(slots, self.reader))
        value = field.at.value_in(slots, self.reader.slots)
        if value is None:
            return None
        if field.way == WAY_DIGEST:
            self.put_digests(field, [value])
            return None
        return self.put(field, self.answer(field, value))

    cdef object answer(self, Field field, object value):
        """Return the rule's answer for a value, without calling the rule if the value is usual."""
        usual = usual_text(field.usual, value) if field.usual else None
        if usual is not None:
            return usual
        # The same as `Memory.__call__`, without the call if the text is remembered.
        return field.rule[value] if field.is_remembered and type(value) is str else field.rule(value)

    cdef int follow_ascii(self, Field field, const Slot* slot) except -1:
        """The same as `follow`, for text that is sent as it is: nearly always a quick look is enough."""
        cdef Py_ssize_t begun = 0, size
        if not field.gives_click_id:
            return self.follow(field, thing(slot)) if is_padded_crawler(slot.text, slot.size) else 0
        size = usual_click_id(slot.text, slot.size, &begun)
        if size < 0:
            self.address = thing(slot)
        elif size:
            self.clicked, self.clicked_size = slot.text + begun, size
        return 0

    cdef int follow(self, Field field, object value) except -1:
        """Note what follows from a value that is sent: an address may hold a click id, an agent may be a crawler's."""
        if field.gives_click_id:
            self.address = value
        elif is_crawler(value):
            note_once(self.warnings(), CRAWLER)
        return 0

    cdef int put_click_id(self, Field field) except -1:
        """Write the click id in the address of the event's page, if there is one."""
        if self.clicked_size:
            self.page.put(field.key)
            self.page.ascii(<const char*> self.clicked, self.clicked_size)
            return 0
        value = None if self.address is None else click_id_of(self.address)
        if value is not None:
            self.page.put(field.key)
            self.page.value(value)
        return 0

    cdef bint is_out_of_place(self, Field field) except -1:
        """Return whether the field belongs to web events only and this is another event; then add the warning."""
        if not field.web_only or self.source == "web":
            return False
        self.warn(NOT_WEB)
        return True

    cdef object several(self, Field field, list values):
        if field.way == WAY_TOTAL:
            return self.put_count(field, total(values))
        if field.way == WAY_FIRST:
            return self.put_first(field, values)
        if field.way == WAY_ALL:
            self.put_values(field, [one for one in [self.sent(field, value) for value in values] if one is not None])
        elif len(values) <= FEW:
            self.put_digests(field, values)
        else:
            values = list(dict.fromkeys(sent_values(field.rule, values, self.warnings(), field.warnings[0])))
            self.put_values(field, values)
            self.unrecognised = len(values) > 0 and str not in map(type, values)
        return None

    cdef object sent(self, Field field, object value):
        """Return what is sent for a value; None, with a warning, if nothing is."""
        result = self.answer(field, value)
        if type(result) is LeftOut:
            note(self.warnings(), result, field.warnings[0])
            return None
        return result

    cdef object put_first(self, Field field, list values):
        """Write the first value that can be sent; return its refusal of the event, or None."""
        for value in values:
            result = self.sent(field, value)
            if result is not None:
                return self.put(field, result)
        return None

    cdef int put_digests(self, Field field, list values) except -1:
        """Write the different digests of these values."""
        cdef Page page = self.page
        cdef Py_ssize_t before = page.size, begun
        cdef char digest[67]  # "64 digits",
        cdef int found
        cdef bint known = False
        digest[0] = digest[65] = c'"'
        digest[66] = c","
        page.put(field.key)
        page.raw(b"[", 1)
        begun = page.size
        for value in values:
            found = self.digest(field, value, digest + 1)
            if found and not is_among(page.data + begun, page.size - begun, digest):
                page.raw(digest, 67)
                known |= found == KNOWN_DIGEST
        self.unrecognised = page.size > begun and not known
        return page.close_or_drop(before, begun, c"]")

    cdef int digest(self, Field field, object value, char* into) except -1:
        """Write the 64 digits of a value and return what they are; add a warning unless its form is known."""
        cdef int found = KNOWN_DIGEST
        if field.usual and put_usual_digest(field.usual, value, into):
            return found
        result = self.answer(field, value)
        if type(result) is not str:
            note(self.warnings(), result, field.warnings[0])
            if type(result) is LeftOut:
                return NO_DIGEST
            found, result = UNRECOGNISED, str(result)
        if not PyUnicode_IS_COMPACT_ASCII(result) or len(<str> result) != 64:
            raise ValueError("no digest")
        memcpy(into, PyUnicode_DATA(result), 64)
        return found

    cdef object put(self, Field field, object value):
        """Write `value`, or leave it out with a warning; return its refusal of the event, or None."""
        if type(value) is LeftOut:
            return self.leave_out(field, value)
        if self.is_out_of_place(field):
            return None
        self.page.put(field.key)
        self.page.value(value)
        if field.zero is not None and begins_with_zero(value) and is_zero(value):
            note_once(self.warnings(), field.zero)
        if field.followed:
            self.follow(field, value)
        return None

    cdef object leave_out(self, Field field, object why):
        if field.refusal is not None and why is MALFORMED:
            return field.refusal
        for warnings in field.warnings:
            note(self.warnings(), why, warnings)
        return None

    cdef int put_values(self, Field field, list values) except -1:
        if values:
            self.page.put(field.key)
            self.page.value(values[: field.most])
        return 0

    cdef object put_count(self, Field field, object value):
        """The same as `put`, for a quantity: a negative one refuses the event."""
        if value is None:
            return NEGATIVE_QUANTITY
        if type(value) is int:
            self.page.put(field.key)
            self.page.value(value)
        else:
            note(self.warnings(), value, field.warnings[0])
        return None

    cdef list warnings(self):
        """Return the list of warnings, to add to it."""
        if self.warned is None:
            self.warned = []
        return self.warned

    cdef int warn(self, object warning) except -1:
        self.warnings().append(warning)
        return 0
