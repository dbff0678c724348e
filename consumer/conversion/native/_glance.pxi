"""Fields whose value is in its canonical form: written without making a Python object.

Theory of operation. A `Glance` holds what is needed to write one field; the glances of one object or item form an array
(`Fields`). `write_one` writes a value whose slot holds canonical text, and calls `Writing.write_field` for every other
value. Both write the same bytes. A field whose rule remembers its answers has a table (`Seen`) from a text to the JSON
that was written for it. Two texts may share an entry: the later one replaces the other, which then costs a miss.
"""

cdef enum:
    KEY_ROOM = 32         # a field with a longer key is written by `write_field`
    SEEN = 128            # how many texts are remembered for a field, each of `SEEN_TEXT` bytes at most
    SEEN_TEXT = 32
    SEEN_ROOM = 96        # bytes of JSON: a digest and its key

cdef struct Seen:
    uint64_t text[4]
    int size     # of the text; 0: nothing is remembered
    int written  # bytes of JSON
    char json[SEEN_ROOM]


cdef struct Glance:
    int way  # of `codes.Glance`. If its slot holds nothing, all ways do the same
    int slot  # below 0: the value is not in a slot
    char key[KEY_ROOM]  # all that is written before the value, perhaps with an opening quote or bracket
    int key_size
    int canonical
    int mark
    bint may_be_zero, web_only, gives_click_id, is_agent
    bint has_constant, takes_click_id
    Seen* seen
    PyObject* field


@cython.final
cdef class Fields:
    """The fields of one object."""

    cdef Glance* each
    cdef int count
    cdef list fields

    def __cinit__(self, compiled):
        cdef CompiledField field
        cdef Glance* glance
        cdef int at
        self.fields = [CompiledField(one) for one in compiled]
        self.count = <int> len(self.fields)
        self.each = <Glance*> PyMem_Calloc(max(1, self.count), sizeof(Glance))
        if self.each == NULL:
            raise MemoryError
        for at, one in enumerate(compiled):
            field, what, key = self.fields[at], one.field, one.key
            glance = self.each + at
            glance.field, glance.way, glance.canonical, glance.mark = <PyObject*> field, one.glance, one.canonical, what.mark
            glance.may_be_zero, glance.web_only = what.zero is not None, what.web_only
            glance.gives_click_id, glance.is_agent = what.gives_click_id, what.crawlers is not None
            glance.has_constant, glance.takes_click_id = what.constant is not None, what.takes_click_id
            glance.slot = field.at.slot if field.at is not None and field.at.in_slot else -1
            if glance.way == GLANCE_TEXT:
                key += b'"'
            elif glance.way == GLANCE_HASHED or glance.way == GLANCE_ONE_HASHED:
                key += b'["'
            if len(key) > KEY_ROOM:
                glance.way = GLANCE_ASKED
            else:
                glance.key_size = <int> len(key)
                memcpy(glance.key, PyBytes_AS_STRING(key), len(key))
            if glance.way == GLANCE_KNOWN_TEXT:
                glance.seen = <Seen*> PyMem_Calloc(SEEN, sizeof(Seen))
                if glance.seen == NULL:
                    raise MemoryError

    def __dealloc__(self):
        cdef int at
        if self.each != NULL:
            for at in range(self.count):
                PyMem_Free(self.each[at].seen)
            PyMem_Free(self.each)


cdef inline uint64_t mixed(const uint64_t* words) noexcept:
    """Return a hash of 64 bits, whose highest bits depend on all of the text."""
    cdef uint64_t both = words[0] ^ words[2] * <uint64_t> 0x9E3779B97F4A7C15
    return (both ^ words[1] ^ words[3] ^ both >> 29) * <uint64_t> 0xBF58476D1CE4E5B9


cdef inline bint write_one(Writing writing, Page page, Glance* glance, const Slot* slots) except -1:
    """Write one field; return whether the event is refused."""
    cdef const Slot* slot = slots + glance.slot
    if glance.slot < 0:
        return writing.write_field(<CompiledField> glance.field, slots)
    if slot.kind == NOTHING or slot.kind == NO_VALUES:
        if glance.has_constant or glance.takes_click_id and (writing.clicked_size or writing.address is not None):
            return writing.write_field(<CompiledField> glance.field, slots)
        return False
    if slot.kind == ASCII_TEXT:
        if glance.way == GLANCE_TEXT:
            if put_text_at_a_glance(writing, page, glance, slot):
                return False
        elif glance.way == GLANCE_HASHED:
            if put_digest_at_a_glance(writing, page, glance, slot):
                return False
        elif glance.way == GLANCE_KNOWN_TEXT and 0 < slot.size <= SEEN_TEXT:
            return put_known_text(writing, page, glance, slots)
    elif slot.kind == ONE_TEXT:
        if glance.way == GLANCE_ONE_HASHED and put_digest_at_a_glance(writing, page, glance, slot):
            return False
    elif slot.kind == NUMBER or slot.kind == DECIMAL:
        if glance.way == GLANCE_TEXT and put_number_at_a_glance(writing, page, glance, slot):
            return False
        if slot.kind == NUMBER and glance.way == GLANCE_HASHED and put_digest_at_a_glance(writing, page, glance, slot):
            return False
    elif slot.kind == TRUTH and glance.way == GLANCE_TRUE_FALSE:
        put_key_at_a_glance(page, glance, 6)
        page.size += glance.key_size
        page.raw("true," if slot.number else "false,", 5 if slot.number else 6)
        writing.marks |= glance.mark
        return False
    return writing.write_field(<CompiledField> glance.field, slots)


cdef inline char* put_key_at_a_glance(Page page, Glance* glance, Py_ssize_t more) except NULL:
    """Write the field's key, with room for this many more bytes; return where they go. The page does not count it
    yet."""
    page.reserve(KEY_ROOM + more)
    memcpy(page.data + page.size, glance.key, KEY_ROOM)
    return page.data + page.size + glance.key_size


cdef inline bint put_text_at_a_glance(Writing writing, Page page, Glance* glance, const Slot* slot) except -1:
    """Write text as it is; return False, and write nothing, if it is not canonical."""
    cdef char* into
    cdef Py_ssize_t begun = 0, clicked
    if not slot.plain or not is_canonical(glance.canonical, slot.text, slot.size):
        return False
    if glance.may_be_zero and slot.text[0] == c"0" or glance.web_only and not writing.is_web:
        return False
    if glance.is_agent and is_padded_crawler(slot.text, slot.size):
        return False
    if glance.gives_click_id:
        clicked = canonical_click_id(slot.text, slot.size, &begun)
        if clicked < 0:
            return False
        writing.clicked, writing.clicked_size = slot.text + begun, clicked
    into = put_key_at_a_glance(page, glance, slot.size + 2)
    copy_padded(into, slot.text, slot.size)
    into[slot.size], into[slot.size + 1] = c'"', c","
    page.size += glance.key_size + slot.size + 2
    writing.marks |= glance.mark
    return True


cdef bint put_number_at_a_glance(Writing writing, Page page, Glance* glance, const Slot* slot) except -1:
    """Write a number where text or an amount is meant; return False if it is not canonical."""
    cdef char* into
    cdef int size
    if not takes_number(glance.canonical, slot.kind == NUMBER) or not 0 < slot.number <= POWERS[MAX_DIGITS]:
        return False
    into = put_key_at_a_glance(page, glance, NUMBER_ROOM + 2)
    size = put_digits(slot.number, <int> slot.size if slot.kind == DECIMAL else 0, into)
    into[size], into[size + 1] = c'"', c","
    page.size += glance.key_size + size + 2
    writing.marks |= glance.mark
    return True


cdef inline bint put_digest_at_a_glance(Writing writing, Page page, Glance* glance, const Slot* slot) except -1:
    """Write the digest of a text, or of a number that means a day, as an array of one; return False if not
    canonical."""
    cdef Digests* digests = &writing.digests
    cdef unsigned char* block = digests.block[digests.count]
    cdef char* into = put_key_at_a_glance(page, glance, 64 + 3)
    cdef int size = 0
    if slot.kind != NUMBER:
        size = block_of(glance.canonical, slot.text, slot.size, block)
    elif glance.canonical == CANONICAL_DAY:
        size = block_of_day(slot.number, block)
    if size == 0:
        return False
    await_digest(digests, size, page.data, into - page.data)
    into[64], into[65], into[66] = c'"', c"]", c","
    page.size += glance.key_size + 67
    writing.marks |= glance.mark
    return True


cdef inline bint put_known_text(Writing writing, Page page, Glance* glance, const Slot* slots) except -1:
    """Write what was written for this text before; if nothing was, call `write_field` and remember what it writes."""
    cdef const Slot* slot = slots + glance.slot
    cdef uint64_t words[4]
    cdef Seen* seen
    cdef Py_ssize_t before = page.size, written
    words_of(slot.text, slot.size, words)
    seen = glance.seen + (mixed(words) >> 57)
    if seen.size == slot.size and memcmp(seen.text, words, sizeof(words)) == 0:
        page.reserve(SEEN_ROOM)
        copy_padded(page.data + page.size, seen.json, seen.written)
        page.size += seen.written
        writing.marks |= glance.mark
        return False
    if writing.write_field(<CompiledField> glance.field, slots):
        return True
    written = page.size - before
    # A text with a warning is not remembered, so that each event gets its warning.
    if not writing.warned and 0 < written <= SEEN_ROOM:
        memcpy(seen.text, words, sizeof(words))
        memcpy(seen.json, page.data + before, written)
        seen.size, seen.written = <int> slot.size, <int> written
    return False


cdef inline bint write_fields(Writing writing, Fields fields, const Slot* slots) except -1:
    """Write these fields; return whether the event is refused."""
    cdef Page page = writing.page
    cdef int at
    for at in range(fields.count):
        if write_one(writing, page, fields.each + at, slots):
            return True
    return False


cdef bint write_object(Writing writing, bytes begins, Fields fields, const Slot* slots) except -1:
    """Write an object, unless it would be empty; return whether the event is refused."""
    cdef Page page = writing.page
    cdef Py_ssize_t before = page.size, begun
    if fields.count == 0:
        return False
    page.put(begins)
    begun = page.size
    if write_fields(writing, fields, slots):
        return True
    page.close_or_drop(before, begun, c"}")
    return False
