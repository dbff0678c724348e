# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""From records to deliveries: runs the program that `consumer.conversion.program` makes of a mapping.

Theory of operation. A record's values are read into slots (`_slots`). Then, in the order of the plain path
(`consumer.conversion.converter`): name, consent, account, source, id, time, the rest of the event, user data, identity,
custom data; the first refusal ends it. Each field that has a value is written at once (`_fields`).

Nothing is decided here that is decided elsewhere: rules, tables and refusals are Python's, and what is not the usual
case is asked of them. Whatever raises leaves the record to the two steps, whose verdict counts.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLong
from cpython.object cimport PyObject
from libc.math cimport ceil, floor
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t
from libc.string cimport memcmp

from consumer.conversion.native._fields cimport At, Field, Writing, at, fields_of
from consumer.conversion.native._json cimport Page
from consumer.conversion.native._slots cimport ITEM_SLOTS, NOTHING, NUMBER, OBJECT, Slot
from consumer.conversion.native._slots cimport Program as Reader
from consumer.conversion.native._usual cimport usual_text

from consumer.avro.decode import is_framed_alike
from consumer.conversion import decisions as decide
from consumer.conversion.amounts import MAX_COUNT, count
from consumer.conversion.decisions import dedup_id_of, id_of, note
from consumer.conversion.normalise import LeftOut
from consumer.conversion.fields import MARKS
from consumer.engine import block, coverage

cdef extern from *:
    const char* PINSTREAM_SOURCES

SOURCES = PINSTREAM_SOURCES.decode()
"""The digest of the sources that this was compiled from (`hatch_build.sources_digest`)."""

include "codes.pxi"

# Looked up once.
cdef object Delivery = block.Delivery
cdef object MALFORMED = LeftOut.MALFORMED
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
cdef object OPT_OUT_TYPE_IGNORED = decide.OPT_OUT_TYPE_IGNORED
cdef object NO_IDENTITY = decide.REFUSALS["no_identity"]
cdef object MISSING_CURRENCY = decide.REFUSALS["missing_currency"]


cdef inline int64_t bound(double number) noexcept:
    """A whole number, or the end of its range."""
    if -9e18 < number < 9e18:
        return <int64_t> number
    return INT64_MAX if number > 0 else INT64_MIN


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


cdef class Events(Writing):
    """Reads records of one plan. Not to be entered twice at once: what is being written is kept here."""

    cdef Page ids
    cdef bint busy
    # What is decided.
    cdef At name_at, consent_at, account_at, source_at, id_at, dedup_at, time_at
    cdef dict names, sources
    cdef object no_name, no_source, decisions
    cdef bint trusts_id, days
    cdef int64_t units
    # Fields.
    cdef list event, app_info, device_info, user, custom
    # Items.
    cdef bint has_items, slotted
    cdef At items_at
    cdef list item_fields
    cdef Field quantity, listed
    cdef object sum_warnings  # None: quantities are not added up
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
        self.items_at, self.slotted = at(items.at), items.slotted
        self.item_fields, self.sum_warnings = fields_of(items.fields), items.sum_warnings
        self.quantity = self.item_fields[items.quantity] if items.quantity >= 0 else None
        self.listed = self.item_fields[items.listed] if items.listed >= 0 else None

    def read(self, list records, list prepared, bytes framing, Py_ssize_t start, double oldest, double present):
        """See `program.Many`."""
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
        self.begin()
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
        if self.sum_warnings is not None and (self.counted or not self.whole):
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
