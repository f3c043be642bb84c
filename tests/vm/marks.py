"""The marks that a copy's metadata hold, read by docs/on-disk-format.md alone: nothing here comes from kagami's own
code, so that code and page can be held against each other."""

import struct

UNIT, SECTOR, BLOCK = 4096, 512, 4096
BLOCKS_OF_EXTENT = 1024
WINDOW, EMPTY = 96, 0xFFFFFFFF
ALL_MARKED = 1 << 5


def _table():
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        yield byte


TABLE = tuple(_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class Damaged(Exception):
    """A sector that no crash explains."""


class Metadata:
    """A metadata store of its own, as it is after each write that is told to `write`."""

    def __init__(self, image):
        self.image = bytearray(image)
        self.sectors = {}
        slot = max((s for s in map(self._superblock, (0, 1)) if s), key=lambda s: s[0])
        body = slot[1]
        (self.size,) = struct.unpack_from("<Q", body, 32)
        self.capacity, placement = struct.unpack_from("<II", body, 144)
        _, self.log_at, self.directory_at, self.pages_at = struct.unpack_from("<4Q", body, 152)
        self.records, _, self.pages = struct.unpack_from("<3I", body, 184)
        if placement != 1:
            raise SystemExit("marks: metadata in a tail; a store of its own is wanted")
        self.windows = -(-self.capacity // WINDOW)

    def write(self, at, data):
        self.image[at : at + len(data)] = data
        for sector in range(at // SECTOR, -(-(at + len(data)) // SECTOR)):
            self.sectors.pop(sector, None)

    def _sector(self, at, magic):
        """(number of the write, payload), or None for a blank sector."""
        known = self.sectors.get(at // SECTOR)
        if known is None:
            raw = bytes(self.image[at : at + SECTOR])
            if not any(raw):
                known = ()
            else:
                (crc,) = struct.unpack_from("<I", raw, 12)
                if crc32c(raw[:12] + bytes(4) + raw[16:]) != crc:
                    raise Damaged(f"byte {at}: checksum")
                (number,) = struct.unpack_from("<Q", raw, 24)
                known = (raw[:8], number, raw[40:])
            self.sectors[at // SECTOR] = known
        if not known:
            return None
        if known[0] != magic:
            raise Damaged(f"byte {at}: {known[0]} where {magic} belongs")
        return known[1:]

    def _unit(self, at, magic):
        """(number, [payloads]) of a whole unit; None where its sectors come from different writes."""
        sectors = [self._sector(at + n * SECTOR, magic) for n in range(8)]
        if None in sectors or len({s[0] for s in sectors}) != 1:
            return None
        return sectors[0][0], [s[1] for s in sectors]

    def _superblock(self, slot):
        unit = self._unit(slot * UNIT, b"kagamiSB")
        return unit and (unit[0], b"".join(unit[1]))

    def superblock(self):
        whole = [s for s in map(self._superblock, (0, 1)) if s]
        if not whole:
            raise Damaged("no whole superblock")
        return max(whole, key=lambda s: s[0])[1]

    def is_all_marked(self):
        return bool(struct.unpack_from("<I", self.superblock(), 44)[0] & ALL_MARKED)

    def hot(self):
        """The extents that the activity log says are hot."""
        place = lambda n: self.log_at + n % self.records * UNIT
        whole = {n: self._unit(place(n), b"kagamiAL") for n in range(self.records)}
        newest = max((n for n in whole if whole[n]), key=lambda n: whole[n][0], default=None)
        if newest is None:
            raise Damaged("no whole record in the activity log")
        slots, at, number = {}, newest, whole[newest][0]
        while len(slots) < self.capacity:
            record = whole[at % self.records]
            if not record or record[0] != number:
                raise Damaged(f"record {number} is not in its place")
            changes = {}
            for payload in record[1]:
                kind, count, length, _, first, _, previous = struct.unpack_from("<BBHIIIQ", payload)
                for n in range(count):
                    slot, extent = struct.unpack_from("<II", payload, 24 + 8 * n)
                    changes[slot] = extent
                for n, extent in enumerate(struct.unpack_from(f"<{length}I", payload, 88)):
                    slots.setdefault(first + n, extent)
            for slot, extent in changes.items():
                slots.setdefault(slot, extent)
            if kind == 2:
                break
            at, number = at - 1, previous
        return {extent for extent in slots.values() if extent != EMPTY}

    def marks(self):
        """Bit b: block b is marked."""
        blocks = self.size // BLOCK
        if self.is_all_marked():
            return (1 << blocks) - 1
        marks = 0
        extents = -(-blocks // BLOCKS_OF_EXTENT)
        for extent in range(extents):
            page, within = divmod(extent, 24)
            sector, part = divmod(within, 3)
            found = self._sector(self.pages_at + page * UNIT + sector * SECTOR, b"kagamiBM")
            if found:
                bits = int.from_bytes(found[1][part * 128 : part * 128 + 128], "little")
                marks |= bits << extent * BLOCKS_OF_EXTENT
        for extent in self.hot():
            marks |= ((1 << BLOCKS_OF_EXTENT) - 1) << extent * BLOCKS_OF_EXTENT
        return marks & (1 << blocks) - 1
