"""Writes the items of an event: ``contents``, and what is gathered from the same values."""


cdef class ItemsWriting(Writing):
    """An event that may have items."""

    cdef bint has_items, slotted
    cdef At items_at
    cdef Fields item_fields
    cdef int quantity, listed  # which of them; below 0: none
    cdef object sum_warnings  # None: quantities are not added up
    cdef object id_warnings
    # Collected while the items of one event are written.
    cdef Page ids
    cdef int64_t things
    cdef bint counted, whole

    @cython.final
    cdef int keep_items(self, items) except -1:
        """Keep how items are written (`program.ItemsWriting`); None: the mapping has none."""
        self.ids, self.has_items = Page(), items is not None
        if items is not None:
            self.items_at, self.slotted = at(items.at), items.slotted
            self.item_fields, self.sum_warnings = Fields(items.fields), items.sum_warnings
            self.quantity, self.listed, self.id_warnings = items.quantity, items.listed, items.id_warnings
        return 0

    @cython.final
    cdef bint write_items(self, const Slot* slots) except -1:
        """Write ``contents`` and what is gathered from the same values; return whether the event is refused."""
        cdef Page page = self.page
        cdef Py_ssize_t before = page.size, begun
        self.ids.size, self.things, self.counted, self.whole = 0, 0, False, True
        page.raw(b'"contents":[', 12)
        begun = page.size
        if self.write_all_items(slots):
            return True
        page.close_or_drop(before, begun, c"]")
        # The ids of the items, as they are written in ``contents``.
        if self.ids.size:
            page.raw(b'"content_ids":[', 15)
            page.raw(self.ids.data, self.ids.size)
            page.close(0, c"]")
        if self.sum_warnings is not None:
            # A wrong sum is worse than none.
            if not self.whole:
                note(self.warning().warned, MALFORMED, self.sum_warnings)
            elif self.counted:
                page.raw(b'"num_items":', 12)
                page.number(self.things)
        return False

    @cython.final
    cdef bint write_all_items(self, const Slot* slots) except -1:
        """Write each item; return as `write_items` does. Raises if the items are no array: then the two steps
        decide."""
        cdef const Slot* items
        cdef Slot one
        cdef Py_ssize_t at
        if self.items_at is None:
            return self.write_item(slots)
        if not self.slotted:
            for item in self.items_at.values(slots, self.reader):
                one.kind, one.object = OBJECT, <PyObject*> item
                if self.write_item(&one):
                    return True
            return False
        items = slots + self.items_at.slot
        if items.kind == NOTHING:
            return False
        if items.kind != ITEM_SLOTS:
            raise TypeError("no array")
        for at in range(items.size):
            if self.write_item(self.reader.item_slots + items.number + at * self.reader.item_width):
                return True
        return False

    @cython.final
    cdef bint write_item(self, const Slot* item) except -1:
        cdef Page page = self.page
        cdef Fields fields = self.item_fields
        cdef Py_ssize_t before = page.size, begun = before + 1, place
        cdef int at
        page.raw(b"{", 1)
        for at in range(fields.count):
            place = page.size
            if at == self.quantity:
                if self.write_quantity(page, fields.each + at, item):
                    return True
                continue
            if write_one(self, page, fields.each + at, item):
                return True
            if at == self.listed:
                self.list_id(<CompiledField> fields.each[at].field, place, item)
        page.close_or_drop(before, begun, c"}")
        return False

    @cython.final
    cdef inline int list_id(self, CompiledField field, Py_ssize_t place, const Slot* item) except -1:
        """Add the id of an item, which was written from this place on, to ``content_ids``."""
        cdef Page page = self.page, ids = self.ids
        if page.size > place:
            place += PyBytes_GET_SIZE(field.key)
            ids.reserve(page.size - place)
            copy_padded(ids.data + ids.size, page.data + place, page.size - place)
            ids.size += page.size - place
        # An id that is omitted is missing there, too.
        elif self.answer(field, item) is MALFORMED:
            note(self.warning().warned, MALFORMED, self.id_warnings)
        return 0

    @cython.final
    cdef object answer(self, CompiledField field, const Slot* item):
        """Return what the rule says of the value of an item; None if it has none."""
        value = field.at.value_in(item, self.reader.slots)
        return None if value is None else field.ask.answer(value)

    @cython.final
    cdef bint write_quantity(self, Page page, Glance* glance, const Slot* item) except -1:
        cdef const Slot* slot = item + glance.slot
        cdef CompiledField field = <CompiledField> glance.field
        if glance.slot >= 0:
            if slot.kind == NOTHING:
                return False
            if slot.kind == NUMBER and slot.number >= 0:
                self.add_things(slot.number)
                put_key_at_a_glance(page, glance, 2)
                page.size += glance.key_size
                if slot.number < 10:
                    page.data[page.size], page.data[page.size + 1] = 48 + <char> slot.number, c","
                    page.size += 2
                else:
                    page.number(slot.number)
                return False
        answer = self.answer(field, item)
        if type(answer) is int:
            self.add_things(answer)  # `amounts.MAX_COUNT` is the greatest number of 64 bits
            page.put(field.key)
            page.number(answer)
            return False
        self.whole = self.whole and answer is not MALFORMED
        return self.write_field(field, item)

    @cython.final
    cdef inline void add_things(self, int64_t number) noexcept:
        """Add to the sum of quantities; a sum beyond 64 bits is not sent."""
        self.counted = True
        if number > INT64_MAX - self.things:
            self.whole = False
        else:
            self.things += number
