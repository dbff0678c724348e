"""Writes the items of an event: ``contents``, and what is gathered from the same values."""

from consumer.conversion.amounts import count


cdef class Items(Writing):
    """An event that may have items."""

    cdef bint has_items, slotted
    cdef At items_at
    cdef Fields item_fields
    cdef int quantity, listed  # which of them; below 0: none
    cdef object sum_warnings  # None: quantities are not added up
    # Collected while the items of one event are written.
    cdef Page ids
    cdef int64_t things
    cdef bint counted, whole

    @cython.final
    cdef int keep_items(self, items) except -1:
        """Keep how items are written (`program.Items`); None: the mapping has none."""
        self.ids, self.has_items = Page(), items is not None
        if items is not None:
            self.items_at, self.slotted = at(items.at), items.slotted
            self.item_fields, self.sum_warnings = Fields(items.fields), items.sum_warnings
            self.quantity, self.listed = items.quantity, items.listed
        return 0

    @cython.final
    cdef object write_items(self, const Slot* slots):
        """Write ``contents`` and what is gathered from the same values; return a refusal, or None."""
        cdef Page page = self.page
        cdef Py_ssize_t before = page.size, begun
        self.ids.size, self.things, self.counted, self.whole = 0, 0, False, True
        page.raw(b'"contents":[', 12)
        begun = page.size
        refusal = self.write_all_items(slots)
        if refusal is not None:
            return refusal
        page.close_or_drop(before, begun, c"]")
        self.write_ids()
        if self.sum_warnings is not None and (self.counted or not self.whole):
            self.write_sum()
        return None

    @cython.final
    cdef object write_all_items(self, const Slot* slots):
        """Write each item; return a refusal, or None. Raises if the items are no array: then the two steps decide."""
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

    @cython.final
    cdef object write_item(self, const Slot* item):
        cdef Page page = self.page, ids = self.ids
        cdef Fields fields = self.item_fields
        cdef Py_ssize_t before = page.size, begun = before + 1, place
        cdef int at
        page.raw(b"{", 1)
        for at in range(fields.count):
            if at == self.quantity:
                refusal = self.write_quantity(page, fields.each + at, item)
                if refusal is not None:
                    return refusal
                continue
            place = page.size
            refusal = write_one(self, page, fields.each + at, item)
            if refusal is not None:
                return refusal
            if at == self.listed and page.size > place:
                place += PyBytes_GET_SIZE((<Field> fields.each[at].field).key)
                ids.reserve(page.size - place)
                copy_padded(ids.data + ids.size, page.data + place, page.size - place)
                ids.size += page.size - place
        page.close_or_drop(before, begun, c"}")
        return None

    @cython.final
    cdef object write_quantity(self, Page page, Glance* glance, const Slot* item):
        cdef const Slot* slot = item + glance.slot
        cdef Field field
        if glance.slot >= 0:
            if slot.kind == NOTHING:
                return None
            if slot.kind == NUMBER and slot.number >= 0:
                self.add_things(slot.number)
                put_key_at_a_glance(page, glance, 2)
                page.size += glance.key_size
                if slot.number < 10:
                    page.data[page.size], page.data[page.size + 1] = 48 + <char> slot.number, c","
                    page.size += 2
                    return None
                page.number(slot.number)
                return None
        field = <Field> glance.field
        value = field.at.value_in(item, self.reader.slots)
        if value is None:
            return None
        value = count(value)
        if type(value) is int:
            self.add_things(value)  # `amounts.MAX_COUNT` is the greatest number of 64 bits
        elif value is not None:
            self.whole = self.whole and value is not MALFORMED
        return self.put_count(field, value)

    @cython.final
    cdef inline void add_things(self, int64_t number) noexcept:
        """Add to the sum of quantities; a sum beyond 64 bits is not sent."""
        self.counted = True
        if number > INT64_MAX - self.things:
            self.whole = False
        else:
            self.things += number

    @cython.final
    cdef int write_ids(self) except -1:
        """Write ``content_ids``: the ids of the items, as they are written in ``contents``."""
        cdef Page page = self.page
        if self.ids.size:
            page.raw(b'"content_ids":[', 15)
            page.raw(self.ids.data, self.ids.size)
            page.close(0, c"]")
        return 0

    @cython.final
    cdef int write_sum(self) except -1:
        """Write the sum of quantities if all of them could be read; else warn, for a wrong sum is worse than none."""
        if self.whole:
            self.page.raw(b'"num_items":', 12)
            self.page.number(self.things)
        else:
            note(self.warnings(), MALFORMED, self.sum_warnings)
        return 0
