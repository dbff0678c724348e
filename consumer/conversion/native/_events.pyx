"""From records to events: runs the program that `consumer.conversion.program` makes of a mapping.

Theory of operation. A record's values are read into slots (`_slots`). Then, in the order of the plain path
(`consumer.conversion.converter`): name, consent, account, source, id, time, the rest of the event, user data, identity,
custom data; the first refusal ends it. Each field that has a value is written at once (`_fields`).

This file includes its parts (`.pxi`). They are compiled as one unit, so that the C compiler can inline small functions,
and have one namespace: what several of them use is imported here.

This file makes no decisions of its own: rules, tables and refusals are Python's, and every other case calls them. If
anything raises, the two steps read the record again, and their verdict counts.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLong, PyLong_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.unicode cimport (
    PyUnicode_AsUTF8AndSize, PyUnicode_DATA, PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8, PyUnicode_GET_LENGTH,
)
from libc.math cimport ceil, floor
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

import hashlib

from consumer.avro.decode import is_framed_alike
from consumer.conversion.decisions import dedup_id_of, id_of
from consumer.conversion.fields import MARKS
from consumer.engine.figures.delivered import COUNTED as counted
from consumer.engine.figures.delivered import BITS_OF_SOURCES
from consumer.engine.reading import OFFLINE as OFFLINE_MARK
from consumer.engine.reading import Kind as event_kind

cdef extern from "Python.h":
    int PyUnicode_IS_COMPACT_ASCII(object text)

include "constants.pxi"
include "_text.pxi"
include "_json.pxi"
include "_keys.pxi"
include "_sha256.pxi"
include "_canonical.pxi"
include "_slots.pxi"
include "_values.pxi"
include "_fields.pxi"
include "_glance.pxi"
include "_items.pxi"

cdef enum:
    FEW_KINDS = 16
    KNOWN = 32  # event types, channels, and accounts, that are found without making text of them
    LONGEST_KNOWN = 32

cdef const char* NO_KEY = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"

# Looked up once.
cdef object EventKind = event_kind
cdef int OFFLINE = OFFLINE_MARK
cdef int EM = MARKS["user_data.em"]
cdef int MAIDS = MARKS["user_data.hashed_maids"] & ~counted  # that are an identity
cdef int ADDRESS = MARKS["user_data.client_ip_address"]
cdef int AGENT = MARKS["user_data.client_user_agent"]
cdef int STATE = MARKS["user_data.st"]
cdef int COUNTRY = MARKS["user_data.country"]
cdef int VALUE = MARKS["custom_data.value"]
cdef int CURRENCY = MARKS["custom_data.currency"]
cdef int OPT_OUT_TYPE = MARKS["custom_data.opt_out_type"]
cdef int COUNTED = counted
cdef int WEB = BITS_OF_SOURCES["web"]
cdef int APP = BITS_OF_SOURCES["app_ios"]
cdef object BY_EVENT_NAME = decide.BY_EVENT_NAME
cdef object BY_CONSENT = decide.BY_CONSENT
cdef object OPT_OUT_TYPE_IGNORED = decide.OPT_OUT_TYPE_IGNORED
cdef object NO_IDENTITY = decide.REFUSALS["no_identity"]
cdef object MISSING_CURRENCY = decide.REFUSALS["missing_currency"]


cdef inline int64_t bound(double number) noexcept:
    """Return the number as an integer, limited to the range of 64 bits."""
    if -9e18 < number < 9e18:
        return <int64_t> number
    return INT64_MAX if number > 0 else INT64_MIN


cdef inline bint is_continued(object record, bytes framing, Py_ssize_t start):
    """The same as `decode.is_framed_alike`, without the call where the record has no headers."""
    value = (<tuple> record)[RECORD_VALUE]
    if start == 0 or (<tuple> record)[RECORD_HEADERS]:
        return is_framed_alike(record, framing, start)
    return (
        type(value) is bytes
        and start == PyBytes_GET_SIZE(framing)
        and PyBytes_GET_SIZE(value) >= start
        and memcmp(PyBytes_AS_STRING(value), PyBytes_AS_STRING(framing), start) == 0
    )


cdef struct Known:
    # What a text in a record means.
    uint64_t text[4]
    int size  # 0: nothing
    PyObject* means


@cython.final
cdef class Meaning:
    """What the values at one place mean: by a table, or as Python decides. Of short texts it is remembered."""

    cdef At at  # None: the mapping has no source
    cdef dict table
    cdef object decide, without
    cdef Known known[KNOWN]  # another text may replace one
    cdef list held  # what they mean

    def __init__(self, place, table, decide):
        self.at, self.table, self.decide, self.held = at(place), table, decide, [None] * KNOWN
        self.without = decide(None)

    cdef object of(self, const Slot* slots):
        cdef uint64_t words[4]
        cdef Known* entry = NULL
        if self.at is None:
            return self.without
        cdef const Slot* slot = slots + self.at.slot
        if self.at.in_slot and slot.kind == ASCII_TEXT and 0 < slot.size <= LONGEST_KNOWN:
            words_of(slot.text, slot.size, words)
            entry = self.known + (mixed(words) >> 59)
            if entry.size == slot.size and memcmp(entry.text, words, sizeof(words)) == 0:
                return <object> entry.means
        value = self.at.value(slots)
        means = self.table.get(value)
        if means is None:
            means = self.decide(value)
        if entry != NULL:
            self.held[entry - self.known] = means
            memcpy(entry.text, words, sizeof(words))
            entry.size, entry.means = <int> slot.size, <PyObject*> means
        return means


cdef inline bint is_canonical_id(const Slot* slot) noexcept:
    return slot.kind == ASCII_TEXT and is_canonical(CANONICAL_TEXT, slot.text, slot.size)


@cython.final
cdef class Events(ItemsWriting):
    """Reads records of one plan. It keeps what it is writing, so `read` must not be entered again before it returns."""

    cdef Page text
    cdef Page ends, times, values, row_marks, kind_numbers, keys  # the columns of the same names in `reading.Columns`
    cdef Py_ssize_t likely  # expected bytes of an event: the average of the last read
    cdef Waiting waiting  # keys that are not hashed into `keys` yet
    cdef bytes prefix  # the first bytes of what a key is the hash of
    cdef bytes earlier  # those of the keys under the earlier tag; None: there are none (`reading.Keys`)
    cdef Page earlier_keys, earlier_text
    cdef object key_account, key_name  # the account and the name that `text` begins with
    cdef Py_ssize_t key_begun  # where the id begins in `text`
    cdef object head_name, head_source  # the name and the source that `head` was written for
    cdef Page head
    cdef dict kinds
    cdef int few  # how many kinds are found without a look-up in `kinds`
    cdef int few_written[FEW_KINDS]
    cdef int few_numbers[FEW_KINDS]
    cdef PyObject* few_names[FEW_KINDS]
    cdef PyObject* few_accounts[FEW_KINDS]
    # Where the event's value and currency are written; valid if it has them.
    cdef Py_ssize_t value_place, currency_place
    cdef int value_size
    cdef bint busy
    # What is decided.
    cdef Meaning names, accounts, sources
    cdef At consent_at, id_at, dedup_at, time_at
    cdef object decisions
    cdef int items_slot  # of items that `first_list` computes
    cdef At first_list  # None: they are read
    cdef int origin  # the slot of what a record has in Kafka beside its value; below 0: nothing is asked for
    cdef bint trusts_id, days
    cdef int64_t units
    # Fields.
    cdef Fields event, app_info, device_info, user, custom

    def __init__(self, program):
        what, places = program.description, program.decided
        decisions = what.decisions
        self.reader = Reader(program.operations, program.width)
        self.page, self.text, self.head, self.busy = Page(), Page(), Page(), False
        self.ends, self.times, self.row_marks, self.kind_numbers, self.keys = Page(), Page(), Page(), Page(), Page()
        self.values = Page()
        self.earlier_keys, self.earlier_text = Page(), Page()
        self.names = Meaning(places["event_name"], decisions.names, decisions.name_of)
        self.accounts = Meaning(
            places["ad_account_id"], {None: decisions.default_account}, decisions.account_of
        )
        self.sources = Meaning(places["action_source"], decisions.exact_sources, decisions.source_of)
        self.consent_at, self.id_at, self.dedup_at = at(program.consent), at(places["event_id"]), at(program.dedup_id)
        self.trusts_id = what.is_text("event_id")
        self.time_at, self.days, self.units = at(places["event_time"]), decisions.days, decisions.units
        self.decisions, self.origin = decisions, program.origin
        self.items_slot, self.first_list = program.items_slot, at(program.first_list)
        self.event, self.app_info = Fields(program.fields["event"]), Fields(program.fields["app_info"])
        self.device_info, self.user = Fields(program.fields["device_info"]), Fields(program.fields["user_data"])
        self.custom = Fields(program.fields["custom_data"])
        self.keep_items(program.items)

    def read(self, records, columns, bytes framing, Py_ssize_t start, double oldest, double present, origin=None):
        """See `program.Many`."""
        cdef Py_ssize_t rows, place, first = len(columns), begun = len(columns.page), before = begun
        # An event's time is an integer, so `oldest` can be rounded up to the next integer, and `present` down.
        cdef int64_t earliest = bound(ceil(oldest)), latest = bound(floor(present))
        if self.busy:
            return
        self.busy, self.prefix, self.kinds = True, columns.make_key.prefix, columns.kinds
        self.earlier = None if columns.make_key.earlier is None else columns.make_key.earlier.prefix
        self.key_account = None
        try:
            self.page.begin(columns.page, self.likely * (len(records) - first))
            for place in range(first, len(records)):
                record = records[place]
                if record is None or (place > first and not is_continued(record, framing, start)):
                    break
                value = (<tuple> record)[RECORD_VALUE]
                if value is None:  # Cython would take None for bytes
                    break
                verdict = self.one(value, start, earliest, latest, present, None if origin is None else origin(record))
                if verdict is not None:
                    self.go_back(before)
                    columns.verdicts[place] = verdict
                    self.keys.raw(NO_KEY, KEY_BYTES)
                    if self.earlier is not None:
                        self.earlier_keys.raw(NO_KEY, KEY_BYTES)
                    self.add_row(0, 0, 0, 0)
                before = self.page.size  # the row is complete: `go_back` must keep it
                if verdict is None and self.warned:
                    columns.warnings[place] = tuple(self.warned)
        except Exception:  # the two steps read the record again, and report whatever is wrong with it
            self.go_back(before)
        finally:
            if self.waiting.count:
                hash_keys(&self.waiting, self.keys.data)
            if self.digests.count:
                hash_waiting(&self.digests, self.page.data)
            # Memory may have run out in the middle of a row. A row's kind is written last, so the number of kinds is
            # the number of complete rows; the rest is cut off.
            rows = self.kind_numbers.size
            if rows > 0:
                self.likely = (self.page.size - begun) // rows
            self.page.end()
            self.ends.size = self.times.size = self.values.size = rows * sizeof(int64_t)
            self.row_marks.size, self.keys.size = rows, rows * KEY_BYTES
            columns.verdicts.pop(first + rows, None)
            columns.ends.frombytes(self.ends.taken())
            columns.times.frombytes(self.times.taken())
            columns.values.frombytes(self.values.taken())
            columns.marks += self.row_marks.taken()
            columns.kind_numbers += self.kind_numbers.taken()
            columns.keys += self.keys.taken()
            if self.earlier is not None:
                self.earlier_keys.size = rows * KEY_BYTES
                columns.earlier_keys += self.earlier_keys.taken()
            self.reader.forget()
            self.text.clear()
            self.ids.clear()
            self.kinds, self.few, self.busy = None, 0, False

    cdef int add_row(self, int64_t time, int64_t value, char mark, unsigned char kind) except -1:
        """Add a row to the columns. The page up to here belongs to it."""
        cdef int64_t end = self.page.size
        self.ends.raw(<char*> &end, sizeof(end))
        self.times.raw(<char*> &time, sizeof(time))
        self.values.raw(<char*> &value, sizeof(value))
        self.row_marks.raw(&mark, 1)
        return self.kind_numbers.raw(<char*> &kind, 1)

    cdef int kind_of(self, str name, str account) except -1:
        """Return the number of the event's kind."""
        cdef int at, written = self.marks & COUNTED
        for at in range(self.few):
            if self.few_written[at] == written and <str> self.few_names[at] == name and <str> self.few_accounts[at] == account:
                return self.few_numbers[at]
        kind = EventKind(account, name, written)
        number = self.kinds.setdefault(kind, len(self.kinds))
        if number > 255:
            raise OverflowError("there are more kinds than a byte can count")
        if self.few < FEW_KINDS:  # `kinds` keeps alive what they point to
            for kept in self.kinds:
                if kept == kind:
                    account, name, _ = kept
            at = self.few
            self.few_written[at], self.few_numbers[at] = written, number
            self.few_names[at], self.few_accounts[at] = <PyObject*> name, <PyObject*> account
            self.few += 1
        return number

    cdef int64_t packed_value(self) noexcept:
        """The same as `reading.packed_value`, of what was written."""
        cdef const char* text = self.page.data + self.value_place
        cdef const char* currency = self.page.data + self.currency_place
        cdef int64_t parts = 0
        cdef int at, digits = 0, behind = -1
        if not self.marks & VALUE:
            return 0
        for at in range(self.value_size):
            if text[at] == c".":
                behind = 0
            elif behind < 4:
                parts = parts * 10 + text[at] - c"0"
                digits += 1
                if behind >= 0:
                    behind += 1
                elif digits > 10:
                    return 0
        for at in range(4 - max(behind, 0)):
            parts *= 10
        for at in range(3):
            parts = parts << 5 | currency[at] - 64
        return parts

    cdef int put_key(self, str account, str name, const char* dedup_id, Py_ssize_t size) except -1:
        """Add the key that `reading.Keys.of` gives. The part before the id is mostly the same as for the last event."""
        cdef Page text = self.text
        cdef Waiting* waiting = &self.waiting
        cdef char key[KEY_BYTES]
        cdef int at
        cdef const char* data
        cdef Py_ssize_t part_size = 0
        if account is not self.key_account or name is not self.key_name:
            self.key_account = None  # not valid until all of it is written
            text.size = 0
            text.put(self.prefix)
            for part in (account, name):
                data = PyUnicode_AsUTF8AndSize(part, &part_size)
                text.raw(data, part_size)
                text.raw("", 1)
            self.key_account, self.key_name, self.key_begun = account, name, text.size
        if self.earlier is not None:
            part_size = PyBytes_GET_SIZE(self.prefix)
            self.earlier_text.size = 0
            self.earlier_text.put(self.earlier)
            self.earlier_text.raw(text.data + part_size, self.key_begun - part_size)
            self.earlier_text.raw(dedup_id, size)
            hash_key(self.earlier_text.data, self.earlier_text.size, key)
            self.earlier_keys.raw(key, KEY_BYTES)
        if HASHES_FOUR and self.key_begun + size <= KEY_BLOCK:
            at = waiting.count
            memset(waiting.block[at], 0, KEY_BLOCK)
            memcpy(waiting.block[at], text.data, self.key_begun)
            memcpy(waiting.block[at] + self.key_begun, dedup_id, size)
            waiting.size[at], waiting.place[at] = self.key_begun + size, self.keys.size
            self.keys.raw(NO_KEY, KEY_BYTES)
            waiting.count += 1  # last: a key that waits must have its place in `keys`
            if waiting.count == 4:
                hash_keys(waiting, self.keys.data)
            return 0
        text.size = self.key_begun
        text.raw(dedup_id, size)
        hash_key(text.data, text.size, key)
        return self.keys.raw(key, KEY_BYTES)

    cdef object one(
        self, bytes value, Py_ssize_t start, int64_t earliest, int64_t latest, object present, object origin
    ):
        """Add the row of one record and return None; or return why it is no event."""
        cdef const Slot* slots = self.reader.slots
        cdef const Slot* when = slots + self.time_at.slot
        cdef const Slot* id_slot = slots + self.id_at.slot
        cdef int64_t time, seconds
        cdef object name, account, moment
        cdef object event_id = None, dedup_id = None  # None: it is `id_text`
        cdef const char* id_text
        cdef const char* dedup_text
        cdef Py_ssize_t id_size = 0, dedup_size
        cdef bint plain = False
        cdef int kind
        self.reader.read(value, start)
        if self.origin >= 0:
            if type(origin) is not dict:  # the schema of its key is not known, say
                raise ValueError("what the record has in Kafka cannot be read")
            put(self.reader, self.reader.slots + self.origin, origin)
        if self.first_list is not None:
            put(self.reader, self.reader.slots + self.items_slot, self.first_list.value(slots))
        self.begin()
        name = self.names.of(slots)
        if name is BY_EVENT_NAME:
            return name
        if self.consent_at is not None and not self.is_consent(slots):
            return BY_CONSENT
        if type(name) is not str:
            return name
        account = self.accounts.of(slots)
        if type(account) is not str:
            return account
        self.source = self.sources.of(slots)
        if type(self.source) is not str:
            return self.source
        self.is_web = self.source == "web"
        self.marks = WEB if self.is_web else 0 if self.source == "offline" else APP
        if self.trusts_id and is_canonical_id(id_slot) and self.id_at.in_slot:
            id_text, id_size, plain = <const char*> id_slot.text, id_slot.size, id_slot.plain
        else:
            event_id = self.id_at.value(slots)
            if not (self.trusts_id and canonical_answer(CANONICAL_TEXT, event_id) is not None):
                event_id = id_of(event_id)
                if type(event_id) is not str:
                    return event_id
            id_text = PyUnicode_AsUTF8AndSize(event_id, &id_size)
        dedup_text, dedup_size = id_text, id_size
        if self.dedup_at is not None:
            dedup_id = dedup_id_of(self.dedup_at.value(slots), None)
            if dedup_id is not None:
                dedup_text = PyUnicode_AsUTF8AndSize(dedup_id, &dedup_size)
        if when.kind == NUMBER and self.time_at.in_slot and not self.days:
            time = when.number
        else:
            moment = self.decisions.time_of(self.time_at.value(slots))
            if type(moment) is not int:
                return moment
            time = PyLong_AsLongLong(moment)
        if time < INT64_MIN // 2:
            raise OverflowError("too far back to calculate with")
        if earliest <= time <= latest:
            seconds = time // self.units if time >= 0 else -((self.units - 1 - time) // self.units)
        else:
            moment = self.decisions.outside(time, present, self.source)
            if type(moment) is not int:
                return moment
            seconds = PyLong_AsLongLong(moment)
        self.write_head(name)
        self.page.number(seconds)
        self.page.raw(b'"event_id":', 11)
        if plain:
            self.page.quoted(id_text, id_size)
        else:
            self.page.text(PyUnicode_DecodeASCII(id_text, id_size, NULL) if event_id is None else event_id)
        if self.write(slots):
            return self.refusal
        kind = self.kind_of(name, account)
        self.put_key(account, name, dedup_text, dedup_size)
        self.add_row(seconds, self.packed_value(), OFFLINE if self.source == "offline" else 0, kind)
        return None

    # -- what is decided

    cdef bint is_consent(self, const Slot* slots) except -1:
        cdef const Slot* slot = slots + self.consent_at.slot
        if self.consent_at.in_slot and slot.kind == TRUTH:
            return slot.number == 1
        return self.consent_at.value(slots) is True

    # -- the event

    cdef int write_head(self, str name) except -1:
        """Write the event up to its time. This part is mostly the same as for the last event."""
        cdef Page head = self.head
        if name is not self.head_name or self.source is not self.head_source:
            self.head_name = None  # not valid until all of it is written
            head.size = 0
            head.raw(b'{"event_name":', 14)
            head.text(name)
            head.raw(b'"action_source":', 16)
            head.text(self.source)
            head.raw(b'"event_time":', 13)
            self.head_name, self.head_source = name, self.source
        return self.page.raw(head.data, head.size)

    cdef bint write(self, const Slot* slots) except -1:
        """Write the rest of the event, after its id; return whether it is refused."""
        cdef Page page = self.page
        if (
            write_fields(self, self.event, slots)
            or write_object(self, b'"app_info":{', self.app_info, slots)
            or write_object(self, b'"device_info":{', self.device_info, slots)
            or write_object(self, b'"user_data":{', self.user, slots)
        ):
            return True
        if not (self.marks & (EM | MAIDS) or self.marks & (ADDRESS | AGENT) == ADDRESS | AGENT):
            return self.refuse(NO_IDENTITY)
        if self.write_custom(slots):
            return True
        page.data[page.size - 1] = c"}"
        page.raw(",", 1)
        return False

    cdef bint write_custom(self, const Slot* slots) except -1:
        cdef Page page = self.page
        cdef Py_ssize_t before = page.size, begun, start
        cdef Glance* glance
        cdef int at
        page.raw(b'"custom_data":{', 15)
        begun = page.size
        if self.has_items and self.write_items(slots):
            return True
        for at in range(self.custom.count):
            glance, start = self.custom.each + at, page.size
            if write_one(self, page, glance, slots):
                return True
            # Between key and value stand a colon and a quote; behind it, a quote and a comma.
            if glance.mark == VALUE and page.size > start:
                self.value_place = start + len(b'"value":"')
                self.value_size = <int> (page.size - 2 - self.value_place)
            elif glance.mark == CURRENCY:
                self.currency_place = start + len(b'"currency":"')
        if self.marks & (VALUE | CURRENCY) == VALUE:
            return self.refuse(MISSING_CURRENCY)
        if self.marks & OPT_OUT_TYPE and self.marks & (STATE | COUNTRY) != STATE | COUNTRY:
            self.warning().warned.append(OPT_OUT_TYPE_IGNORED)
        page.close_or_drop(before, begun, c"}")
        return False
