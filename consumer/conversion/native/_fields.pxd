from consumer.conversion.native._json cimport Page
from consumer.conversion.native._slots cimport Program as Reader
from consumer.conversion.native._slots cimport Slot


cdef class At:
    cdef int slot, item
    cdef tuple below
    cdef bint in_slot  # it is what stands in the slot
    cdef object value(self, const Slot* slots)
    cdef list values(self, const Slot* slots, Reader reader)


cdef class Field:
    cdef bytes key
    cdef int way
    cdef At at
    cdef At gather
    cdef object rule
    cdef object memory  # a dict that knows more: not to be taken for one
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


cdef class Writing:
    cdef Reader reader
    cdef Page page
    # What is known of the event so far.
    cdef object source
    cdef object address  # of its page, if there may be a click id in it
    cdef const unsigned char* clicked  # the click id in it, in the record's bytes
    cdef Py_ssize_t clicked_size  # 0: there is none, or `address` has to be asked
    cdef list warned
    cdef int marks
    cdef void begin(self)
    cdef object write_object(self, bytes begins, list fields, const Slot* slots)
    cdef object write_fields(self, list fields, const Slot* slots)
    cdef object write_field(self, Field field, const Slot* slots)
    cdef object write_value(self, Field field, const Slot* slots)
    cdef object one_digest(self, Field field, const Slot* slots)
    cdef bint put_usual(self, Field field, const Slot* slot) except -1
    cdef object put_ascii(self, Field field, const Slot* slot)
    cdef int follow_ascii(self, Field field, const Slot* slot) except -1
    cdef int follow(self, Field field, object value) except -1
    cdef int put_click_id(self, Field field) except -1
    cdef bint is_out_of_place(self, Field field) except -1
    cdef object several(self, Field field, list values)
    cdef object sent(self, Field field, object value)
    cdef object put_first(self, Field field, list values)
    cdef int put_digests(self, Field field, list values) except -1
    cdef bint has_digest(self, Field field, object value, char* into) except -1
    cdef object put(self, Field field, object value)
    cdef object leave_out(self, Field field, object why)
    cdef object put_digest(self, Field field, object value)
    cdef int put_values(self, Field field, list values) except -1
    cdef object put_count(self, Field field, object value)
    cdef list warnings(self)
    cdef int warn(self, object warning) except -1


cdef At at(place)
cdef list fields_of(fields)
