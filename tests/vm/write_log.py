"""Reads what dm-log-writes recorded (Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c).

The kernel logs a write when the flush that covers it is done (a FUA write when it is itself): what comes before an
entry with FLUSH or FUA is on stable storage with it.
"""

import os
import struct
import sys

MAGIC = 0x6A736677736872
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SECTOR = 512


def entries(log):
    """(flags, first byte on the disk, length in bytes, where the data are in the log) for each entry."""
    # Entries lie between their data: read in large pieces, one after the other.
    window = [0, b""]

    def read(size, at):
        if not window[0] <= at <= window[0] + len(window[1]) - size:
            window[:] = at, os.pread(log, 1 << 20, at)
        return window[1][at - window[0] : at - window[0] + size]

    magic, _version, count, sector_size = SUPER.unpack(read(SUPER.size, 0))
    if magic != MAGIC:
        sys.exit("no log of dm-log-writes")
    at = sector_size
    for _ in range(count):
        sector, sectors, flags, length = ENTRY.unpack(read(ENTRY.size, at))
        if flags & MARK:
            yield flags, 0, length, at + ENTRY.size
            at += sector_size
            continue
        data = at + sector_size
        # In both cases the unit is the logged disk's sector.
        size = sectors * sector_size
        yield flags, sector * sector_size, size, data
        at = data if flags & DISCARD else data + size
