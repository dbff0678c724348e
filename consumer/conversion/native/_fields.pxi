"""Writes the fields of an event, of objects in it, and of items, from a record's slots.

Theory of operation. Each field that has a value is written as JSON at once (`_json`), so no payload is made. A value
in its canonical form needs no call of its rule (`_canonical`), and neither does one that the rule remembers
(`rules.Memory`). What follows from any other answer (a refusal, a warning) the functions of the plain path say
(`consumer.conversion.converter`).
"""

from consumer.avro.paths import VALUES
from consumer.conversion import decisions as decide
from consumer.conversion.converter import Rejected, judged, sent_of_many
from consumer.conversion.decisions import note
from consumer.conversion.layout import ComputedAt
from consumer.conversion.normalise import Omitted
from consumer.conversion.rules import Memory, click_id_of

cdef enum:
    FEW = 32  # values of a field: fewer than are sent of any

cdef object EACH_VALUE = VALUES
cdef object BLANK = Omitted.BLANK, MALFORMED = Omitted.MALFORMED


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
    """Add the values at the end of the steps from `step` on, below `value`; an empty step means each element, `VALUES`
    each value of a map."""
    if value is None:
        return 0
    if step == len(below):
        found.append(value)
    elif below[step]:
        if type(value) is not dict:
            return 0
        if below[step] is not EACH_VALUE:
            return gather((<dict> value).get(below[step]), below, step + 1, found)
        for each in (<dict> value).values():
            gather(each, below, step + 1, found)
    elif type(value) is list:
        for each in <list> value:
            gather(each, below, step + 1, found)
    else:
        gather(value, below, step + 1, found)
    return 0


cdef inline bint begins_with_zero(object text) noexcept:
    return PyUnicode_IS_COMPACT_ASCII(text) and (<const unsigned char*> PyUnicode_DATA(text))[0] == c"0"


cdef At at(place):
    return None if place is None else At(place)


@cython.final
cdef class Shortcut:
    """A rule that is called only for a value that is not canonical, and whose answer it does not remember."""

    cdef object rule
    cdef bint is_remembered
    cdef int canonical

    def __init__(self, rule, int canonical):
        self.rule, self.canonical, self.is_remembered = rule, canonical, isinstance(rule, Memory)

    def __call__(self, value):
        return self.answer(value)

    cdef object answer(self, value):
        answer = canonical_answer(self.canonical, value) if self.canonical else None
        if answer is not None:
            return answer
        # The same as `Memory.__call__`, without the call if the text is remembered.
        return self.rule[value] if self.is_remembered and type(value) is str else self.rule(value)


@cython.final
cdef class CompiledField:
    """See `program.CompiledField`."""

    cdef object field  # the `ProgramField`
    cdef bytes key, constant
    cdef At at, gather
    cdef Shortcut ask
    cdef int mark, way
    cdef bint is_followed, may_be_zero, is_list, takes_click_id

    def __init__(self, compiled):
        field = compiled.field
        self.field, self.key, self.constant = field, compiled.key, compiled.constant
        self.at, self.gather = at(compiled.at), at(compiled.gather)
        self.ask, self.mark, self.way = Shortcut(field.ask, compiled.canonical), field.mark, field.way
        self.is_list, self.takes_click_id, self.may_be_zero = field.is_list, field.takes_click_id, field.zero is not None
        self.is_followed = field.is_judged and not self.may_be_zero

    cdef object canonical_of(self, list values):
        """Return what is sent of these values, if each is answered by text from which nothing else follows; None:
        `sent_of_many` says it."""
        cdef list found = []
        if self.way == WAY_TOTAL or self.way != WAY_FIRST and len(values) > FEW:
            return None
        for value in values:
            answer = self.ask.answer(value)
            if type(answer) is not str or self.is_judged(answer):
                return None
            if self.way == WAY_FIRST:
                return answer
            found.append(answer)
        return list(dict.fromkeys(found)) if self.way == WAY_DIGESTS else found

    cdef inline bint is_judged(self, object answer) noexcept:
        """Return whether more follows from an answer than that it is sent; of an amount, only if it begins with 0."""
        if type(answer) is str:
            return self.is_followed or self.may_be_zero and begins_with_zero(answer)
        return self.is_followed or type(answer) is not int and type(answer) is not bool


cdef class Writing:
    """One event while it is written. The functions of `converter` take it for theirs."""

    cdef Reader reader
    cdef Page page
    cdef public object source
    cdef public object address  # of its page, if there may be a click id in it
    cdef public list warned  # None: nothing
    cdef const unsigned char* clicked  # the click id in the address, in the record's bytes: padded and plain
    cdef Py_ssize_t clicked_size  # 0: there is none, or `address` has to be asked
    cdef object refusal  # why it is no event
    cdef int marks
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

    cdef bint refuse(self, object refusal) noexcept:
        """Refuse the event; return True, as what writes does for an event that is refused."""
        self.refusal = refusal
        return True

    cdef bint write_field(self, CompiledField field, const Slot* slots) except -1:
        """Write a field, or what stands in for its value if it has none; return whether the event is refused."""
        cdef Page page = self.page
        try:
            sent = self.sent(field, slots)
        except Rejected as rejected:
            return self.refuse(rejected.rejection)
        if sent is None and field.takes_click_id:
            if self.clicked_size:
                page.put(field.key)
                page.quoted(<const char*> self.clicked, self.clicked_size)
                self.marks |= field.mark
                return False
            sent = None if self.address is None else click_id_of(self.address)
        if sent is not None:
            page.put(field.key)
            page.value(sent)
            # An advertising id of unknown form is no identity.
            if field.mark & MAIDS and str not in map(type, sent):
                self.marks |= field.mark & COUNTED
                return False
        elif field.constant is not None:
            page.put(field.key)
            page.put(field.constant)
            page.raw(b",", 1)
        else:
            return False
        self.marks |= field.mark
        return False

    cdef object sent(self, CompiledField field, const Slot* slots):
        """Return the value that is sent; None if there is none. Raises `Rejected`."""
        cdef list values
        if field.gather is not None:
            values = field.gather.values(slots, self.reader)
            if len(values) > 1:
                sent = field.canonical_of(values)
                return sent_of_many(field.field, field.ask, values, self.warning()) if sent is None else sent
            value = values[0] if values else None
        else:
            value = None if field.at is None else field.at.value_in(slots, self.reader.slots)
        answer = BLANK if value is None else field.ask.answer(value)
        if answer is BLANK:
            return None
        if field.is_judged(answer):
            answer = judged(field.field, answer, self.warning())
        return [answer] if field.is_list and answer is not None else answer

    cdef Writing warning(self):
        """Return this, with a list of warnings to add to."""
        if self.warned is None:
            self.warned = []
        return self
