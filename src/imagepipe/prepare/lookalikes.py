"""Images of different splits that look alike, by a perceptual hash: found, drawn, and judged by the reader.

The hash is dHash (N. Krawetz, 'Kind of Like That', hackerfactor.com, 2013). Pairs within some bits of each other are
found by bands: two hashes that differ in at most d of 64 bits agree in one at least of d + 1 bands, so that only what
shares a band is compared.
"""

import io
import unicodedata
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from imagepipe.core.files import write_bytes
from imagepipe.core.manifest import SPLITS
from imagepipe.sources.names import MOST_NAME, show_name

SMALLEST_SIDE = 64  # pixels; below it the 9×8 cells say too little, and everything looks alike
FLAT = ("0" * 16, "f" * 16)  # an image without detail, or one ramp from side to side: all of these look alike

MOST_EQUAL = 100  # images of one split with one and the same hash; further ones are not compared
MOST_COMPARED = 400  # hashes in a bucket that are compared all with all; in larger ones each with so many next to it
MOST_PAIRS = 10_000  # pairs in the answer, the nearest first

THUMB = 150  # pixels, the side of the square that each image of the sheet fits into
GAP = 8
LINE = 14
FONT = "matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"  # Pillow's own font has ASCII letters alone
FONT_SIZE = 10
PAIRS_A_ROW = 3
CAPTION_LINES = 2

Pair = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Lookalikes:
    """Pairs (key, key in the higher split, bits that differ), sorted by bits, then keys; train < val < test.

    `capped` says that there may be more: sets of images that all look alike were not compared all with all, or the
    pairs were more than MOST_PAIRS.
    """

    pairs: list[Pair]
    capped: bool


def fingerprint_image(pixels: NDArray[np.uint8]) -> str:
    """dHash of uint8 (H, W) or (H, W, 3) as 16 hexadecimal digits; '' where a side is below SMALLEST_SIDE pixels.

    The image is averaged to 9 × 8 grey cells; row by row, a bit is 1 where a cell is brighter than its left neighbour.
    Pillow averages 8-bit images in integers, so the hash is the same on every machine. (Its `reducing_gap` would save a
    third of the time on large images, but a resized copy then differs in up to 6 bits instead of 2.)
    """
    if min(pixels.shape[:2]) < SMALLEST_SIDE:
        return ""
    small = Image.fromarray(pixels).resize((9, 8), Image.Resampling.BOX).convert("L")
    cells = np.asarray(small)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes().hex()


def find_lookalikes(
    fingerprints: Mapping[str, str],
    splits: Mapping[str, str],
    distance: int,
    pixels: Mapping[str, Hashable] | None = None,
) -> Lookalikes:
    """All pairs of keys in different splits whose hashes differ in at most `distance` bits, 0 to 8.

    Left out are keys without a hash, those with a FLAT one, and pairs whose very pixels are equal: those to which
    `pixels` gives one value. Keys that it lacks are like no other.
    """
    usable = sorted(key for key, value in fingerprints.items() if value and value not in FLAT)
    hashes = np.fromiter((int(fingerprints[key], 16) for key in usable), np.uint64, len(usable))
    ranks = np.fromiter((SPLITS.index(splits[key]) for key in usable), np.int64, len(usable))
    images = number_images(usable, pixels or {})
    chosen = thin_equal(hashes, ranks)
    search = Search(hashes[chosen], ranks[chosen], images[chosen], distance, len(chosen) < len(usable))
    first, second, bits = search.find_pairs()
    keys = [usable[place] for place in chosen.tolist()]
    places = zip(first.tolist(), second.tolist(), bits.tolist(), strict=True)
    return Lookalikes(sorted(((keys[one], keys[two], d) for one, two, d in places), key=order_pair), search.capped)


def order_pair(pair: Pair) -> tuple[int, str, str]:
    """Nearest first, then by keys."""
    return pair[2], pair[0], pair[1]


def number_images(keys: Sequence[str], pixels: Mapping[str, Hashable]) -> NDArray[np.int64]:
    """A number for each key, the same for those with one value in `pixels`."""
    numbers = np.arange(len(keys))
    first: dict[Hashable, int] = {}
    for place, key in enumerate(keys):
        if key in pixels:
            numbers[place] = first.setdefault(pixels[key], place)
    return numbers


def thin_equal(hashes: NDArray[np.uint64], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places, rising, of what is compared: of each hash the first MOST_EQUAL of each split."""
    order = np.lexsort((ranks, hashes))  # stable, so that places rise within a group
    starts = start_groups(hashes[order], ranks[order])
    nth = np.arange(len(order)) - starts
    return np.sort(order[nth < MOST_EQUAL])


def start_groups(*sorted_columns: NDArray[np.generic]) -> NDArray[np.int64]:
    """For each place the first place of its run of equal rows."""
    count = len(sorted_columns[0])
    new = np.zeros(count, np.bool_)
    new[:1] = True
    for column in sorted_columns:
        new[1:] |= column[1:] != column[:-1]
    return np.maximum.accumulate(np.where(new, np.arange(count), 0))


def make_bands(free: int, count: int) -> Iterator[int]:
    """`count` masks that share out the bits set in `free` as evenly as can be."""
    bits = [bit for bit in range(64) if free >> bit & 1]
    for band in range(count):
        part = bits[band * len(bits) // count : (band + 1) * len(bits) // count]
        yield sum(1 << bit for bit in part)


class Search:
    """The search over arrays, all (N,): `hashes`, `ranks` (the split's place in SPLITS) and `images` (equal numbers are
    equal pixels). It keeps the MOST_PAIRS nearest of all pairs that it meets, so its memory is bounded."""

    def __init__(
        self,
        hashes: NDArray[np.uint64],
        ranks: NDArray[np.int64],
        images: NDArray[np.int64],
        distance: int,
        capped: bool,
    ) -> None:
        self.hashes = hashes
        self.ranks = ranks
        self.images = images
        self.distance = distance
        self.capped = capped
        self._found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        self._size = 0
        self._last: int | None = None  # what comes after this code cannot be among the MOST_PAIRS any more

    def find_pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Places of the first and the second of each pair, and the bits in which they differ."""
        everything = np.arange(len(self.hashes))
        whole = (1 << 64) - 1
        for band in make_bands(whole, self.distance + 1):
            large = self.compare_buckets(everything, band, final=False)
            # Two that agree in this band differ in at most `distance` of the other bits: bands again, to no loss.
            for finer in make_bands(whole & ~band, self.distance + 1):
                if len(large) and finer:
                    self.compare_buckets(large, band | finer, final=True)
        self.prune()
        codes = self._found[0]
        rest, second = np.divmod(codes, max(1, len(self.hashes)))
        bits, first = np.divmod(rest, max(1, len(self.hashes)))
        return first, second, bits

    def compare_buckets(self, members: NDArray[np.int64], mask: int, final: bool) -> NDArray[np.int64]:
        """Compare the members that agree in the bits of `mask`, and return those of buckets that are too large for it.

        In the `final` round those are compared too, each with the MOST_COMPARED next to it.
        """
        masked = self.hashes[members] & np.uint64(mask)
        order = np.lexsort((self.hashes[members], masked))
        members, masked = members[order], masked[order]
        starts = start_groups(masked)
        heads, sizes = np.unique(starts, return_counts=True)
        ranks = self.ranks[members]
        several = np.minimum.reduceat(ranks, heads) < np.maximum.reduceat(ranks, heads) if len(heads) else sizes > 0
        large = several & (sizes > MOST_COMPARED)
        if final and large.any():
            self.capped = True
        wanted = several if final else several & ~large
        ends = np.repeat(np.where(wanted, heads + sizes, 0), sizes)
        self.compare_neighbours(members, ends)
        return members[np.repeat(large, sizes)] if not final else members[:0]

    def compare_neighbours(self, members: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Compare each member with the MOST_COMPARED - 1 after it that stand before its bucket's end in `ends`."""
        hashes = self.hashes[members]
        active = np.arange(len(members))
        for lag in range(1, MOST_COMPARED):
            active = active[active + lag < ends[active]]
            if not len(active):
                return
            near = np.bitwise_count(hashes[active] ^ hashes[active + lag]) <= self.distance
            if near.any():
                self.add_pairs(members[active[near]], members[active[near] + lag])

    def add_pairs(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Take up the pairs that reach over two splits and whose pixels differ, the one in the lesser split first."""
        fit = (self.ranks[one] != self.ranks[other]) & (self.images[one] != self.images[other])
        one, other = one[fit], other[fit]
        turned = self.ranks[one] > self.ranks[other]
        first, second = np.where(turned, other, one), np.where(turned, one, other)
        bits = np.bitwise_count(self.hashes[one] ^ self.hashes[other]).astype(np.int64)
        # One number for each pair, in the order of the answer; 9 · N² fits int64 up to a billion images.
        codes = (bits * len(self.hashes) + first) * len(self.hashes) + second
        if self._last is not None:
            codes = codes[codes <= self._last]
        self._found.append(codes)
        self._size += len(codes)
        if self._size > 50 * MOST_PAIRS:
            self.prune()

    def prune(self) -> None:
        """Keep each pair once, and the nearest MOST_PAIRS of them."""
        codes = np.unique(np.concatenate(self._found))
        if len(codes) > MOST_PAIRS:
            self.capped = True
            self._last = int(codes[MOST_PAIRS - 1])
        self._found = [codes[:MOST_PAIRS]]
        self._size = len(self._found[0])


def draw_lookalikes(pairs: Sequence[tuple[bytes, str, bytes, str]], found: int, path: Path) -> None:
    """A contact sheet of pairs, the first of `found`, each (image file, caption, image file, caption), as PNG.

    A caption has up to two lines, parted by LF; what is too long for its image loses its middle. The same images and
    captions give the same bytes.
    """
    rows = -(-len(pairs) // PAIRS_A_ROW)
    width, height = 2 * THUMB + 4 * GAP, THUMB + CAPTION_LINES * LINE + 3 * GAP
    sheet = Image.new("RGB", (PAIRS_A_ROW * width, LINE + 2 * GAP + rows * height), "white")
    canvas = ImageDraw.Draw(sheet)
    font = load_font()
    title = f"{len(pairs)} of {found} pairs across splits that look alike" if pairs else "no look-alikes"
    canvas.text((GAP, GAP), title, fill="black", font=font)
    for place, (one, caption, other, other_caption) in enumerate(pairs):
        left, top = place % PAIRS_A_ROW * width, LINE + 2 * GAP + place // PAIRS_A_ROW * height
        canvas.rectangle((left + GAP // 2, top, left + width - GAP // 2, top + height - GAP), outline="#bbbbbb")
        for side, (file, text) in enumerate(((one, caption), (other, other_caption))):
            corner = (left + GAP + GAP // 2 + side * (THUMB + GAP), top + GAP)
            draw_captioned(sheet, canvas, font, file, text, corner)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def load_font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along; what it lacks is drawn as a box.

    Pillow itself places the letters: Raqm, which places Arabic as it is written, is not on every machine.
    """
    path = distribution("matplotlib").locate_file(FONT)
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def draw_captioned(
    sheet: Image.Image,
    canvas: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    file: bytes,
    caption: str,
    corner: tuple[int, int],
) -> None:
    """One image, fitted into its square whose top left is `corner`, and its caption below."""
    with Image.open(io.BytesIO(file)) as image:
        picture = fit_picture(image.convert("RGB"))
    left, top = corner
    sheet.paste(picture, (left + (THUMB - picture.width) // 2, top + (THUMB - picture.height) // 2))
    for number, line in enumerate(caption.split("\n")[:CAPTION_LINES]):
        text = fit_caption(line, font, THUMB)
        canvas.text((left, top + THUMB + GAP // 2 + number * LINE), text, fill="black", font=font)


def fit_picture(image: Image.Image) -> Image.Image:
    """The image as large as the square allows, in its own proportions; small ones keep hard pixels."""
    scale = THUMB / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def fit_caption(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` on one line of at most `width` pixels: what cannot be printed is escaped, a long middle becomes `…`.

    A letter and its accent are drawn as the one letter that they are, where there is one.
    """
    half = MOST_NAME // 2
    plain = show_name(unicodedata.normalize("NFC", text[:half] + text[half:][-half:]))
    if font.getlength(plain) <= width:
        return plain
    low, high = 0, len(plain) - 1  # letters that stay; the longest that fits
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(cut_middle(plain, middle)) <= width:
            low = middle
        else:
            high = middle - 1
    return cut_middle(plain, low)


def cut_middle(text: str, kept: int) -> str:
    """The first and last letters of `text`, `kept` in all, the end the longer half since names differ there."""
    head = kept // 2
    return f"{text[:head]}…{text[len(text) - (kept - head) :]}"
