"""Read the pages of a MediaWiki dump as raw XML, from any position.

A dump is not parsed as one XML document: `<page>`, possibly with attributes, and `</page>` are found in its bytes (they
are escaped in a page's text), and each page is parsed separately. Reading can therefore begin anywhere, and a damaged
page does not affect others.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from kdcore import PART_BYTES, DataError, Part
from kdcore_preparation.readers.input_files import BZIP2, compression, damaged, is_plain, open_counted
from kdcore_preparation.readers.wikipedia.wiki_languages import Wiki

COMPRESSED_PART_BYTES = PART_BYTES // 4
"""For a compressed dump, which unpacks to about four times its size."""

MAX_PAGE_BYTES = 64 * 2**20

_FILE_NAMESPACES = ("-2", "6", "14")  # Media, File, Category
_TEMPLATE_NAMESPACE = "10"
_CHUNK = 2**20
_MAGIC_BYTES = 10
_TAIL = 256
_PAGE = re.compile(rb"<page[\s>]")
_FIRST_ELEMENT = re.compile(rb"<([^\s!?/>][^\s/>]*)")
_LANGUAGE = re.compile(rb"""\bxml:lang=["']([A-Za-z][\w-]*)["']""")
_DATABASE = re.compile(r"([a-z_]+?)(?:wiki|wiktionary|wikibooks|wikiquote|wikisource|wikinews|wikiversity|wikivoyage)")
_UTF16 = re.compile(rb"\xff\xfe|\xfe\xff|<\x00|\x00<")
_ALLOWED = "a pages-articles dump of MediaWiki"


def part_bytes(path: Path, size: int) -> int:
    """Return the size of the parts of this file; the file's size if it can be read only from its start."""
    if size > PART_BYTES and is_plain(path):
        return PART_BYTES
    if size > COMPRESSED_PART_BYTES and _is_multistream(path):
        return COMPRESSED_PART_BYTES
    return max(size, 1)


def read_wiki(path: Path) -> Wiki:
    """Read the wiki's language and namespaces from the start of the dump.

    Raises:
        DataError: the file is not a dump.
    """
    head = bytearray()
    with open_counted(path) as (stream, _):
        # One stream of a multistream dump at a time: a later one may be damaged.
        while len(head) < _CHUNK and not _PAGE.search(head) and (read := stream.read1(2**16)):  # type: ignore[attr-defined]
            head += read
    if _UTF16.match(head):
        raise DataError(
            "is a UTF-16 dump, which is not supported",
            where=str(path),
            allowed=f"{_ALLOWED}, in UTF-8",
            hint="unpack it if it is compressed, and convert it: iconv -f UTF-16 -t UTF-8 OLD.xml > NEW.xml; its first "
            "line, if it is <?xml ... encoding=...?>, must declare UTF-8",
        )
    first = _FIRST_ELEMENT.search(head)
    if first is None:
        raise DataError("the dump contains no pages", where=str(path), allowed=_ALLOWED)
    if first[1].rpartition(b":")[2] != b"mediawiki":
        name = first[1].decode("utf-8", errors="replace")
        raise DataError(f"is not a MediaWiki dump: its first element is <{name}>", where=str(path), allowed=_ALLOWED)
    site = re.search(rb"<siteinfo>.*?</siteinfo>", head, re.DOTALL)
    try:
        info = ElementTree.Element("siteinfo") if site is None else ElementTree.fromstring(site[0])
    except ElementTree.ParseError as error:
        raise DataError(f"the dump's <siteinfo> is not valid XML ({error})", where=str(path)) from error
    namespaces = [(each.get("key"), each.text) for each in info.iter("namespace") if each.text]
    stated = _LANGUAGE.search(head, first.start(), head.find(b">", first.start()) + 1)
    database = _DATABASE.fullmatch(info.findtext("dbname", "").strip())
    return Wiki.of(
        stated[1].decode("ascii") if stated else database[1] if database else "",
        hidden=[name for key, name in namespaces if key in _FILE_NAMESPACES],
        template_namespaces=[name for key, name in namespaces if key == _TEMPLATE_NAMESPACE],
    )


class DumpPart:
    """The pages that begin in one part of a dump.

    Attributes:
        bytes_read: number of bytes of the part on disk that have been read.
    """

    def __init__(self, path: Path, part: Part) -> None:
        self.bytes_read = 0
        self._path = path
        self._start = part.start
        self._end = part.end

    def pages(self) -> Iterator[bytes]:
        """Yield each page, from `<page>` to `</page>`.

        Raises:
            DataError: the dump is damaged or ends too early; all complete pages before the damage have been yielded.
        """
        buffer = bytearray()
        gone = 0  # bytes dropped from the buffer
        own: int | None = None  # total bytes of the part, once known
        start = -1  # start of the unfinished page in the buffer
        place = 0  # position up to which the buffer has been searched
        pages = 0
        tail = b""
        for chunk, is_own in self._chunks():
            if own is None and not is_own:
                own = gone + len(buffer)
                if start < 0 and b"<" not in buffer[place:]:
                    return  # pages end within the part; the next one may be damaged
            buffer += chunk
            tail = (tail + chunk)[-_TAIL:]
            while True:
                if start < 0:
                    found = _PAGE.search(buffer, place)
                    if found is None:
                        place = max(place, len(buffer) - len(b"<page>") + 1)
                        break
                    place = start = found.start()
                if own is not None and gone + start >= own:
                    return
                end = buffer.find(b"</page>", place)
                if end < 0:
                    place = max(place, len(buffer) - len(b"</page>") + 1)
                    break
                place = end + len(b"</page>")
                pages += 1
                yield bytes(buffer[start:place])
                start = -1
            if own is not None and start < 0 and gone + place >= own:
                return
            if len(buffer) - max(start, 0) > MAX_PAGE_BYTES and start >= 0:
                raise DataError(
                    f"page {pages + 1} is longer than {MAX_PAGE_BYTES >> 20} MiB",
                    where=str(self._path),
                    allowed=f"{_ALLOWED}, not one with the pages' histories",
                )
            keep = place if start < 0 else start
            del buffer[:keep]
            gone, place, start = gone + keep, place - keep, min(start, 0)
        if start >= 0 or (self._end is None and pages and b"</mediawiki>" not in tail):
            raise DataError(
                f"the dump is damaged or ends too early, after {pages:,} whole pages"
                + (f" from byte {self._start:,} on" if self._start else ""),
                where=str(self._path),
                hint="download the dump again and compare it with the published checksum",
            )

    def _chunks(self) -> Iterator[tuple[bytes, bool]]:
        """Yield chunks of unpacked bytes, beginning at the part's start, and whether each chunk belongs to the part."""
        if compression(self._path) == "bzip2":
            with self._path.open("rb") as raw:
                yield from self._bzip2(raw)
            return
        with open_counted(self._path) as (stream, raw):
            if self._start:
                stream.seek(self._start)
            position = self._start
            while True:
                own = self._end is None or position < self._end
                size = _CHUNK if self._end is None or not own else min(_CHUNK, self._end - position)
                if not (chunk := stream.read(size)):
                    return
                position += len(chunk)
                self.bytes_read = raw.tell() - self._start
                yield chunk, own

    def _bzip2(self, raw: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
        position = _find_stream(raw, self._start, self._end) if self._start else 0
        if position is None:
            return
        raw.seek(position)
        packed = b""  # read but not yet unpacked; starts at `position`
        while True:
            packed += raw.read(_MAGIC_BYTES - len(packed)) if len(packed) < _MAGIC_BYTES else b""
            if not packed:
                return
            if not BZIP2.match(packed):
                raise damaged(self._path, f"no bzip2 data from byte {position:,} on")
            own = self._end is None or position < self._end
            yield b"", own
            unpacker = bz2.BZ2Decompressor()
            try:
                while not unpacker.eof:
                    if unpacker.needs_input and not packed and not (packed := raw.read(_CHUNK // 4)):
                        raise damaged(self._path, f"byte {position:,} is its last")
                    chunk = unpacker.decompress(packed, _CHUNK)
                    position += len(packed)
                    packed = b""
                    self.bytes_read = position - self._start
                    if chunk:
                        yield chunk, own
            except OSError as error:
                if error.errno is not None:
                    raise
                raise damaged(self._path, f"{error}, near byte {position:,}") from error
            packed = unpacker.unused_data
            position -= len(packed)


def _is_multistream(path: Path) -> bool:
    try:
        if compression(path) != "bzip2":
            return False
    except DataError:
        return False
    with path.open("rb") as raw:
        return _find_stream(raw, 1, COMPRESSED_PART_BYTES) is not None


def _find_stream(raw: IO[bytes], start: int, end: int | None) -> int | None:
    """Find the first bzip2 stream that begins at `start` or later and before `end`."""
    raw.seek(start)
    position = start
    carried = b""
    while read := raw.read(_CHUNK):
        window = carried + read
        if found := BZIP2.search(window):
            at = position - len(carried) + found.start()
            return at if end is None or at < end else None
        position += len(read)
        if end is not None and position >= end + _MAGIC_BYTES:
            return None
        carried = window[1 - _MAGIC_BYTES :]
    return None
