# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""From records to deliveries: runs the program that `consumer.conversion.program` makes of a mapping.

Theory of operation. A record's values are read into slots (`_slots`). Then, in the order of decisions (see
`convert_source`): name, consent, account, source, id, time, the rest of the event, user data, identity, custom data; the
first refusal ends it. Each field that has a value is written as JSON at once (`_json`), so no payload is made.

Nothing is decided here that is decided elsewhere: rules, tables, caches and refusals are Python's, and what is not the
usual case is asked of them. Whatever raises leaves the record to the two steps, whose verdict counts.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLong
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DATA
from libc.math cimport ceil, floor
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t
from libc.string cimport memcmp, memcpy

from consumer.conversion.native._json cimport Page
from consumer.conversion.native._slots cimport ASCII_TEXT, ITEM_SLOTS, NOTHING, NUMBER, OBJECT, ONE_TEXT, Slot, thing
from consumer.conversion.native._slots cimport Program as Reader
from consumer.conversion.native._usual cimport (
    USUAL_TEXT,
    may_be_crawler,
    passes_as_text,
    put_usual_digest,
    put_usual_digest_of,
    usual_click_id,
    usual_text,
)

from consumer.conversion import decisions as decide
from consumer.engine import block, coverage
from consumer.conversion import normalise
from consumer.conversion.amounts import MAX_COUNT, count, is_zero
from consumer.conversion.decisions import dedup_id_of, digests, id_of, note, note_once
from consumer.conversion.fields import MARKS
from consumer.conversion.rules import click_id_of, total
from consumer.avro.decode import is_framed_alike

cdef extern from "Python.h":
    int PyUnicode_IS_COMPACT_ASCII(object text)

cdef extern from *:
    const char* PINSTREAM_SOURCES

SOURCES = PINSTREAM_SOURCES.decode()
"""The digest of the sources that this was compiled from (`hatch_build.sources_digest`)."""

cdef enum:
    # Ways of a field (`convert_fields.Way`).
    TEXT = 0
    REMEMBERED = 1
    FLAG = 2
    RULE = 3
    DIGEST = 4
    ONE_DIGEST = 5
    DIGESTS = 6
    ALL = 7
    FIRST = 8
    TOTAL = 9

cdef enum:
    FEW = 32  # values whose digests are compared each with each

# Looked up once.
cdef object Delivery = block.Delivery
cdef object LeftOut = normalise.LeftOut
cdef object MALFORMED = LeftOut.MALFORMED
cdef object BLANK = LeftOut.BLANK
cdef int EM = MARKS["user_data.em"]
cdef int MAIDS = MARKS["user_data.hashed_maids"]
cdef int ADDRESS = MARKS["user_data.client_ip_address"]
cdef int AGENT = MARKS["user_data.client_user_agent"]
cdef int STATE = MARKS["user_data.st"]
cdef int COUNTRY = MARKS["user_data.country"]
cdef int VALUE = MARKS["custom_data.value"]
cdef int CURRENCY = MARKS["custom_data.currency"]
cdef int OPT_OUT_TYPE = MARKS["custom_data.opt_out_type"]
cdef int COUNTED = (1 << len(coverage.BITS)) - 1  # marks that the engine counts
cdef object BY_EVENT_NAME = decide.BY_EVENT_NAME
cdef object BY_CONSENT = decide.BY_CONSENT
cdef object NOT_WEB = decide.NOT_WEB
cdef object OPT_OUT_TYPE_IGNORED = decide.OPT_OUT_TYPE_IGNORED
cdef object CRAWLER = decide.CRAWLER
cdef object NO_IDENTITY = decide.REFUSALS["no_identity"]
cdef object MISSING_CURRENCY = decide.REFUSALS["missing_currency"]
cdef object NEGATIVE_QUANTITY = decide.REFUSALS["negative_quantity"]


cdef class At:
    """Where a value stands, or all values (`convert_program.At`)."""

    cdef int slot, item
    cdef tuple below
    cdef bint in_slot  # it is what stands in the slot

    def __init__(self, at):
        self.slot, self.below, self.item = at
        self.in_slot = not self.below

    cdef inline object value(self, const Slot* slots):
        """The value; None where there is none."""
        value = thing(slots + self.slot)
        for name in self.below:
            value = (<dict> value).get(name) if type(value) is dict else None
        return value

    cdef list values(self, const Slot* slots, Reader reader):
        """All values, as `convert_decisions.walk` gives them."""
        cdef list found = []
        cdef const Slot* slot = slots + self.slot
        cdef Py_ssize_t at
        if self.item < 0:
            gather(thing(slot), self.below, 0, found)
        elif slot.kind == ITEM_SLOTS:
            for at in range(slot.size):
                gather(thing(reader.item_slots + slot.number + at * reader.item_width + self.item), self.below, 0, found)
        return found


cdef int gather(object value, tuple below, Py_ssize_t step, list found) except -1:
    """Add what stands below `value` at the end of the steps from `step` on; a step without a name is each element."""
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


cdef class Field:
    """See `convert_program.Field`."""

    cdef bytes key
    cdef int way
    cdef At at
    cdef At gather
    cdef object rule
    cdef object cache  # a dict that knows more: not to be taken for one
    cdef int most
    cdef tuple warnings
    cdef object refusal
    cdef object zero
    cdef bint web_only
    cdef bint gives_click_id, takes_click_id
    cdef object crawlers
    cdef bint followed  # something else follows from what is sent: a click id, a warning
    cdef bytes constant
    cdef int mark
    cdef int usual

    def __init__(self, field):
        self.key, self.way, self.rule, self.cache = field.key, field.way, field.rule, field.cache
        self.at, self.gather = at(field.at), at(field.gather)
        self.most, self.mark = field.most, field.mark
        self.warnings, self.refusal, self.zero = field.warnings, field.refusal, field.zero
        self.web_only, self.constant, self.usual = field.web_only, field.constant, field.usual
        self.gives_click_id, self.takes_click_id = field.gives_click_id, field.takes_click_id
        self.crawlers = field.crawlers
        self.followed = self.gives_click_id or self.crawlers is not None


cdef At at(place):
    return None if place is None else At(place)


cdef list fields_of(fields):
    return [Field(one) for one in fields]


cdef inline bint begins_with_zero(object text):
    return type(text) is str and PyUnicode_IS_COMPACT_ASCII(text) and (<const unsigned char*> PyUnicode_DATA(text))[0] == c"0"


cdef inline int64_t bound(double number) noexcept:
    """A whole number, or the end of its range."""
    if -9e18 < number < 9e18:
        return <int64_t> number
    return INT64_MAX if number > 0 else INT64_MIN


cdef bint is_among(const char* entries, Py_ssize_t size, const char* digest) noexcept:
    """Whether these digits are among the entries, all of which are written like it."""
    cdef Py_ssize_t at = 0
    while at < size:
        if memcmp(entries + at, digest, 67) == 0:
            return True
        at += 67
    return False


cdef inline bint goes_on(object record, bytes framing, Py_ssize_t start):
    """As `decode.is_framed_alike`, which is asked where there are headers."""
    value = (<tuple> record)[3]
    if start == 0 or (<tuple> record)[4]:
        return is_framed_alike(record, framing, start)
    return (
        type(value) is bytes
        and start == PyBytes_GET_SIZE(framing)
        and PyBytes_GET_SIZE(value) >= start
        and memcmp(PyBytes_AS_STRING(value), PyBytes_AS_STRING(framing), start) == 0
    )


cdef class Events:
    """Reads records of one plan. Not to be entered twice at once: what is being written is kept here."""

    cdef Reader reader
    cdef Page page
    cdef Page ids
    cdef bint busy
    # What is known of the event so far.
    cdef object source
    cdef object address  # of its page, if there may be a click id in it
    cdef const unsigned char* clicked  # the click id in it, in the record's bytes
    cdef Py_ssize_t clicked_size  # 0: there is none, or `address` has to be asked
    cdef list warned
    cdef int marks
    # What is decided.
    cdef At name_at, consent_at, account_at, source_at, id_at, dedup_at, time_at
    cdef dict names, sources
    cdef object no_name, no_source, decisions
    cdef bint trusts_id, days
    cdef int64_t units
    # Fields.
    cdef list event, app_info, device_info, user, custom
    # Items.
    cdef bint has_items, slotted, summed
    cdef At items_at
    cdef list item_fields
    cdef Field quantity, listed
    cdef object sum_warnings
    # What is gathered from the items of an event.
    cdef object things
    cdef bint counted, whole

    def __init__(self, program):
        decided = program.decided
        self.reader = Reader(program.operations, program.width)
        self.page, self.ids, self.busy = Page(), Page(), False
        self.name_at, self.names, self.no_name = at(decided.name), decided.names, decided.no_name
        self.consent_at, self.account_at = at(decided.consent), at(decided.account)
        self.source_at, self.sources, self.no_source = at(decided.source), decided.sources, decided.no_source
        self.id_at, self.trusts_id, self.dedup_at = at(decided.event_id), decided.trusts_event_id, at(decided.dedup_id)
        self.time_at, self.days, self.units = at(decided.time), decided.days, decided.units
        self.decisions = decided.decisions
        self.event, self.app_info = fields_of(program.event), fields_of(program.app_info)
        self.device_info, self.user = fields_of(program.device_info), fields_of(program.user)
        self.custom = fields_of(program.custom)
        self.has_items = program.items is not None
        if self.has_items:
            self._keep_items(program.items)

    def _keep_items(self, items):
        self.items_at, self.slotted, self.summed = at(items.at), items.slotted, items.summed
        self.item_fields, self.sum_warnings = fields_of(items.fields), items.sum_warnings
        self.quantity = self.item_fields[items.quantity] if items.quantity >= 0 else None
        self.listed = self.item_fields[items.listed] if items.listed >= 0 else None

    def read(self, list records, list prepared, bytes framing, Py_ssize_t start, double oldest, double present):
        """See `fused_source.Many`."""
        cdef Py_ssize_t first = len(prepared), place
        # An event's time is whole: it is not before `oldest` if it is not before the next whole one.
        cdef int64_t earliest = bound(ceil(oldest)), latest = bound(floor(present))
        if self.busy:
            return
        self.busy = True
        try:
            for place in range(first, len(records)):
                record = records[place]
                if place > first and not goes_on(record, framing, start):
                    return
                value = (<tuple> record)[3]
                if value is None:  # which passes for bytes
                    return
                prepared.append(self.one(value, start, earliest, latest, present))
        except Exception:  # whatever it is, the two steps find out and say
            return
        finally:
            self.reader.forget()
            self.page.clear()
            self.ids.clear()
            self.busy = False

    cdef object one(self, bytes value, Py_ssize_t start, int64_t earliest, int64_t latest, object present):
        """What becomes of one record."""
        cdef const Slot* slots = self.reader.slots
        cdef const Slot* when = slots + self.time_at.slot
        cdef int64_t time, seconds
        cdef object name, account, event_id, moment, refusal
        self.reader.read(value, start)
        self.warned, self.marks, self.address, self.clicked_size = None, 0, None, 0
        name = self.name_of(slots)
        if name is BY_EVENT_NAME:
            return name
        if self.consent_at is not None and not self.decisions.is_consent(self.consent_at.value(slots)):
            return BY_CONSENT
        if type(name) is not str:
            return name
        account = self.account_of(slots)
        if type(account) is not str:
            return account
        self.source = self.source_of(slots)
        if type(self.source) is not str:
            return self.source
        event_id = self.id_at.value(slots)
        if not (self.trusts_id and usual_text(USUAL_TEXT, event_id) is not None):
            event_id = id_of(event_id)
            if type(event_id) is not str:
                return event_id
        dedup_id = event_id if self.dedup_at is None else dedup_id_of(self.dedup_at.value(slots), event_id)
        if when.kind == NUMBER and self.time_at.in_slot and not self.days:
            time = when.number
        else:
            moment = self.decisions.time_of(self.time_at.value(slots))
            if type(moment) is not int:
                return moment
            time = PyLong_AsLongLong(moment)
        if time < INT64_MIN // 2:
            raise OverflowError("no time that is reckoned with here")
        if earliest <= time <= latest:
            seconds = time // self.units if time >= 0 else -((self.units - 1 - time) // self.units)
        else:
            moment = self.decisions.outside(time, present)
            if type(moment) is not int:
                return moment
            seconds = PyLong_AsLongLong(moment)
        refusal = self.write(slots, name, seconds, event_id)
        if refusal is not None:
            return refusal
        warned = () if self.warned is None else tuple(self.warned)
        return Delivery(account, name, dedup_id, seconds, self.source == "offline", self.page.taken(), warned, self.marks & COUNTED)

    # -- what is decided

    cdef object name_of(self, const Slot* slots):
        if self.name_at is None:
            return self.no_name
        value = self.name_at.value(slots)
        name = self.names.get(value)
        return self.decisions.name_of(value) if name is None else name

    cdef object account_of(self, const Slot* slots):
        value = None if self.account_at is None else self.account_at.value(slots)
        return self.decisions.default_account if value is None else self.decisions.account_of(value)

    cdef object source_of(self, const Slot* slots):
        if self.source_at is None:
            return self.no_source
        value = self.source_at.value(slots)
        source = self.sources.get(value)
        return self.decisions.source_of(value) if source is None else source

    # -- the event

    cdef object write(self, const Slot* slots, str name, int64_t seconds, str event_id):
        """Write the event; gives with what it is refused, else None."""
        cdef Page page = self.page
        page.size = 0
        page.raw(b'{"event_name":', 14)
        page.text(name)
        page.raw(b'"action_source":', 16)
        page.text(self.source)
        page.raw(b'"event_time":', 13)
        page.number(seconds)
        page.raw(b'"event_id":', 11)
        page.text(event_id)
        refusal = self.write_fields(self.event, slots)
        if refusal is None:
            refusal = self.write_object(b'"app_info":{', self.app_info, slots)
        if refusal is None:
            refusal = self.write_object(b'"device_info":{', self.device_info, slots)
        if refusal is None:
            refusal = self.write_object(b'"user_data":{', self.user, slots)
        if refusal is None and not (self.marks & (EM | MAIDS) or self.marks & (ADDRESS | AGENT) == ADDRESS | AGENT):
            refusal = NO_IDENTITY
        if refusal is None:
            refusal = self.write_custom(slots)
        if refusal is None:
            page.data[page.size - 1] = c"}"
        return refusal

    cdef object write_object(self, bytes begins, list fields, const Slot* slots):
        """An object, if there is anything in it."""
        cdef Page page = self.page
        cdef Py_ssize_t before = page.size, begun
        if not fields:
            return None
        page.put(begins)
        begun = page.size
        refusal = self.write_fields(fields, slots)
        if page.size == begun:
            page.size = before
        else:
            page.close(begun, c"}")
        return refusal

    cdef object write_fields(self, list fields, const Slot* slots):
        cdef Field field
        for field in fields:
            refusal = self.write_field(field, slots)
            if refusal is not None:
                return refusal
        return None

    cdef object write_custom(self, const Slot* slots):
        cdef Page page = self.page
        cdef Py_ssize_t before = page.size, begun
        page.raw(b'"custom_data":{', 15)
        begun = page.size
        refusal = self.write_items(slots) if self.has_items else None
        if refusal is None:
            refusal = self.write_fields(self.custom, slots)
        if refusal is not None:
            return refusal
        if self.marks & (VALUE | CURRENCY) == VALUE:
            return MISSING_CURRENCY
        if self.marks & OPT_OUT_TYPE and self.marks & (STATE | COUNTRY) != STATE | COUNTRY:
            self.warn(OPT_OUT_TYPE_IGNORED)
        if page.size == begun:
            page.size = before
        else:
            page.close(begun, c"}")
        return None

    # -- one field

    cdef object write_field(self, Field field, const Slot* slots):
        """Write it and what stands for it where it has no value; gives with what it refuses the event, else None."""
        cdef Py_ssize_t before = self.page.size
        refusal = self.write_value(field, slots) if field.at is not None or field.gather is not None else None
        if self.page.size == before and refusal is None:
            if field.takes_click_id:
                self.put_click_id(field)
            if field.constant is not None and self.page.size == before:
                self.page.put(field.key)
                self.page.put(field.constant)
                self.page.raw(b",", 1)
        if self.page.size != before:
            self.marks |= field.mark
        return refusal

    cdef object write_value(self, Field field, const Slot* slots):
        cdef const Slot* slot
        if field.way == ONE_DIGEST:
            return self.one_digest(field, slots)
        if field.at is None:
            return self.several(field, field.gather.values(slots, self.reader))
        slot = slots + field.at.slot
        if slot.kind == NOTHING:
            return None
        if slot.kind == ASCII_TEXT and field.usual and field.at.in_slot:
            if field.way == DIGEST:
                if self.put_usual(field, slot):
                    return None
            elif passes_as_text(field.usual, slot.text, slot.size):
                return self.put_ascii(field, slot)
        value = field.at.value(slots)
        if value is None:
            return None
        if field.way == DIGEST:
            return self.put_digest(field, value)
        if field.usual:
            usual = usual_text(field.usual, value)
            if usual is not None:
                return self.put(field, usual)
        if field.way == REMEMBERED:
            return self.put(field, field.cache[value])
        if field.way == FLAG and (value is True or value is False):
            return self.put(field, value)
        return self.put(field, field.rule(value))

    cdef object one_digest(self, Field field, const Slot* slots):
        """One digest is by far the most common. More, or what is no array: as `several`."""
        cdef const Slot* slot = slots + field.at.slot
        if slot.kind == NOTHING:
            return None
        if slot.kind == ONE_TEXT and field.at.in_slot:
            return None if self.put_usual(field, slot) else self.put_digest(field, thing(slot)[0])
        value = field.at.value(slots)
        if value is None:
            return None
        if type(value) is list:
            if len(<list> value) == 1:
                return self.put_digest(field, (<list> value)[0])
            if not value:
                return None
        return self.several(field, field.gather.values(slots, self.reader))

    cdef bint put_usual(self, Field field, const Slot* slot) except -1:
        """The digest of a text as an array of one; False if the rule has to be asked."""
        cdef char digest[68]  # ["64 digits"]
        if not field.usual or not put_usual_digest_of(field.usual, slot.text, slot.size, digest + 2):
            return False
        digest[0], digest[1], digest[66], digest[67] = c"[", c'"', c'"', c"]"
        self.page.put(field.key)
        self.page.raw(digest, 68)
        self.page.raw(b",", 1)
        return True

    cdef object put_ascii(self, Field field, const Slot* slot):
        """As `put` of a text that is sent as it is."""
        if field.zero is not None and slot.text[0] == c"0":
            return self.put(field, thing(slot))
        if not self.is_out_of_place(field):
            self.page.put(field.key)
            self.page.ascii(<const char*> slot.text, slot.size)
            if field.followed:
                self.follow_ascii(field, slot)
        return None

    cdef int follow_ascii(self, Field field, const Slot* slot) except -1:
        """As `follow`, of a text that is sent as it is; nearly always it is told at a glance what does."""
        cdef Py_ssize_t begun = 0, size
        if not field.gives_click_id:
            return self.follow(field, thing(slot)) if may_be_crawler(slot.text, slot.size) else 0
        size = usual_click_id(slot.text, slot.size, &begun)
        if size < 0:
            self.address = thing(slot)
        elif size:
            self.clicked, self.clicked_size = slot.text + begun, size
        return 0

    cdef int follow(self, Field field, object value) except -1:
        """What follows from a value that is sent: where a click id may stand, or a warning."""
        if field.gives_click_id:
            self.address = value
        elif field.crawlers[value]:
            note_once(self.warnings(), CRAWLER)
        return 0

    cdef int put_click_id(self, Field field) except -1:
        """The click id in the address of the event's page, if there is one."""
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
        """Whether it belongs to web events only and this is none, which is warned of."""
        if not field.web_only or self.source == "web":
            return False
        self.warn(NOT_WEB)
        return True

    cdef object several(self, Field field, list values):
        if field.way == TOTAL:
            return self.put_count(field, total(values))
        if field.way == FIRST:
            return self.put_first(field, values)
        if field.way == ALL:
            self.put_values(field, [one for one in [self.sent(field, value) for value in values] if one is not None])
        elif len(values) <= FEW:
            self.put_digests(field, values)
        else:
            self.put_values(field, digests(field.rule, values, self.warnings(), field.warnings[0]))
        return None

    cdef object sent(self, Field field, object value):
        """What is sent of a value; None, and a warning, if nothing is."""
        result = usual_text(field.usual, value) if field.usual else None
        if result is None:
            result = field.rule(value)
            if type(result) is LeftOut:
                note(self.warnings(), result, field.warnings[0])
                return None
        return result

    cdef object put_first(self, Field field, list values):
        """The first that can be sent."""
        for value in values:
            result = self.sent(field, value)
            if result is not None:
                return self.put(field, result)
        return None

    cdef int put_digests(self, Field field, list values) except -1:
        """The different digests of these values."""
        cdef Page page = self.page
        cdef Py_ssize_t before = page.size, begun
        cdef char digest[67]  # "64 digits",
        digest[0] = digest[65] = c'"'
        digest[66] = c","
        page.put(field.key)
        page.raw(b"[", 1)
        begun = page.size
        for value in values:
            if self.has_digest(field, value, digest + 1) and not is_among(page.data + begun, page.size - begun, digest):
                page.raw(digest, 67)
        if page.size == begun:
            page.size = before
        else:
            page.close(begun, c"]")
        return 0

    cdef bint has_digest(self, Field field, object value, char* into) except -1:
        """Write a value's 64 digits; a warning if it has none."""
        if field.usual and put_usual_digest(field.usual, value, into):
            return True
        result = field.rule(value)
        if type(result) is not str:
            note(self.warnings(), result, field.warnings[0])
            return False
        if not PyUnicode_IS_COMPACT_ASCII(result) or len(<str> result) != 64:
            raise ValueError("no digest")
        memcpy(into, PyUnicode_DATA(result), 64)
        return True

    cdef object put(self, Field field, object value):
        """`value` is written, or left out with a warning, or refuses the event."""
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
        if field.refusal is not None:
            return field.refusal if why is MALFORMED else None
        for warnings in field.warnings:
            note(self.warnings(), why, warnings)
        return None

    cdef object put_digest(self, Field field, object value):
        """The digest of `value` as an array of one."""
        cdef char digest[68]  # ["64 digits"]
        if field.usual and put_usual_digest(field.usual, value, digest + 2):
            digest[0], digest[1], digest[66], digest[67] = c"[", c'"', c'"', c"]"
            self.page.put(field.key)
            self.page.raw(digest, 68)
            self.page.raw(b",", 1)
            return None
        value = field.rule(value) if field.cache is None else field.cache[value]
        if type(value) is not str:
            note(self.warnings(), value, field.warnings[0])
            return None
        self.page.put(field.key)
        self.page.raw(b"[", 1)
        self.page.text(value)
        self.page.close(0, c"]")
        return None

    cdef int put_values(self, Field field, list values) except -1:
        if values:
            self.page.put(field.key)
            self.page.value(values[: field.most])
        return 0

    cdef object put_count(self, Field field, object value):
        """As `put` for a count: a negative one refuses the event."""
        if value is None:
            return NEGATIVE_QUANTITY
        if type(value) is int:
            self.page.put(field.key)
            self.page.value(value)
        else:
            note(self.warnings(), value, field.warnings[0])
        return None

    # -- items

    cdef object write_items(self, const Slot* slots):
        """``contents``, and what is gathered from the same values."""
        cdef Page page = self.page
        cdef Py_ssize_t before = page.size, begun
        self.ids.size, self.things, self.counted, self.whole = 0, 0, False, True
        page.raw(b'"contents":[', 12)
        begun = page.size
        refusal = self.write_all_items(slots)
        if refusal is not None:
            return refusal
        if page.size == begun:
            page.size = before
        else:
            page.close(begun, c"]")
            self.write_ids()
        if self.summed and (self.counted or not self.whole):
            self.write_sum()
        return None

    cdef object write_all_items(self, const Slot* slots):
        """They stand in an array, or else the two steps are asked."""
        cdef const Slot* items
        cdef Slot one
        cdef Py_ssize_t at
        if self.items_at is None:
            return self.write_item(slots)
        if not self.slotted:
            for item in self.items_at.values(slots, self.reader):
                one.kind, one.object = OBJECT, <PyObject*> item
                refusal = self.write_item(&one)
                if refusal is not None:
                    return refusal
            return None
        items = slots + self.items_at.slot
        if items.kind == NOTHING:
            return None
        if items.kind != ITEM_SLOTS:
            raise TypeError("no array")
        for at in range(items.size):
            refusal = self.write_item(self.reader.item_slots + items.number + at * self.reader.item_width)
            if refusal is not None:
                return refusal
        return None

    cdef object write_item(self, const Slot* item):
        cdef Page page = self.page
        cdef Field field
        cdef Py_ssize_t before = page.size, begun = before + 1, at
        page.raw(b"{", 1)
        for field in self.item_fields:
            at = page.size
            refusal = self.write_quantity(field, item) if field is self.quantity else self.write_field(field, item)
            if refusal is not None:
                return refusal
            if field is self.listed and page.size > at:
                at += PyBytes_GET_SIZE(field.key)
                self.ids.raw(page.data + at, page.size - at)
        if page.size == begun:
            page.size = before
        else:
            page.close(begun, c"}")
        return None

    cdef object write_quantity(self, Field field, const Slot* item):
        cdef const Slot* slot = item + field.at.slot
        if slot.kind == NOTHING:
            return None
        if slot.kind == NUMBER and field.at.in_slot and slot.number >= 0:
            value = slot.number
        else:
            value = field.at.value(item)
            if value is None:
                return None
            value = count(value)
        if type(value) is int:
            self.things += value
            self.counted = True
        elif value is not None:
            self.whole = self.whole and value is not MALFORMED
        return self.put_count(field, value)

    cdef int write_ids(self) except -1:
        """``content_ids``: the ids of the items, as they stand there."""
        cdef Page page = self.page
        if self.ids.size:
            page.raw(b'"content_ids":[', 15)
            page.raw(self.ids.data, self.ids.size)
            page.close(0, c"]")
        return 0

    cdef int write_sum(self) except -1:
        """A wrong sum is worse than none: it is sent only if every quantity could be read."""
        if self.whole and self.things <= MAX_COUNT:
            self.page.raw(b'"num_items":', 12)
            self.page.value(self.things)
        else:
            note(self.warnings(), MALFORMED, self.sum_warnings)
        return 0

    # -- warnings

    cdef list warnings(self):
        """What is warned of, to add to."""
        if self.warned is None:
            self.warned = []
        return self.warned

    cdef int warn(self, object warning) except -1:
        self.warnings().append(warning)
        return 0
