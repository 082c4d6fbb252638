"""One image on its way to disk: checked, decoded, brought to the wanted mode and size, encoded as PNG.

A file is believed only after `verify()` and `load()`: the first finds a wrong checksum in a PNG that the second passes
over, the second finds the cut JPEG that the first does not look at.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from imagepipe.core.errors import InputError
from imagepipe.core.hashes import hash_bytes, hash_pixels
from imagepipe.core.slices import PNG_SIGNATURE
from imagepipe.prepare import lookalikes
from imagepipe.prepare.params import FORMATS, ImageParams

# Of zlib-ng, which Pillow brings along. Against level 6, measured: MNIST's digits take a fifth less time and 2 % fewer
# bytes, photographs less than half the time and 7 % more bytes.
PNG_LEVEL = 3
FULL_16_BIT = 65_535
NARROW = 12  # bits: what cameras and scanners store in 16 without scaling it
ORIENTATION = 0x0112  # the Exif tag
TRANSPOSE = {  # Exif 2.32, 4.6.4: how the stored rows and columns lie in the scene
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_KINDS = {"L": b"\x08\x00", "RGB": b"\x08\x02"}  # depth and colour type, as IHDR has them
# What Pillow's decoders raise on bytes that are not what they claim to be.
DECODER_ERRORS = (
    OSError,
    EOFError,
    AssertionError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class UnusableImage(Exception):
    """Why an image cannot be taken."""


class ImageFacts(NamedTuple):
    """What the manifests, the leak gate and the train statistics need of a stored image.

    `content_sha256` is the hash of the pixels before they were brought to another size, so that a wish for another size
    changes nobody's place where it is the place's source.
    `pixel_sums` and `pixel_squares` are exact integers per channel: the sum of the uint8 values, and of their squares.
    `fingerprint` is a perceptual hash of 64 bits as 16 hexadecimal digits, or '' where a side is below 64 pixels.
    `remark` says what was done to the original that its owner may want to know, or ''.
    """

    content_sha256: str
    pixel_sha256: str
    width: int
    height: int
    mode: str
    pixel_sums: tuple[int, ...]
    pixel_squares: tuple[int, ...]
    fingerprint: str
    remark: str


class Decoded(NamedTuple):
    """uint8 pixels (H, W) or (H, W, 3), a remark or '', and the content's hash where it is not that of the pixels.

    `png` is a PNG of just these pixels where the source has one, else b''.
    """

    pixels: NDArray[np.uint8]
    remark: str
    content_sha256: str
    png: bytes = b""


def name_mode(pixels: NDArray[np.uint8]) -> str:
    """Pillow's mode of uint8 pixels of shape (H, W) or (H, W, 3)."""
    return "L" if pixels.ndim == 2 else "RGB"


def name_recipe(params: ImageParams) -> str:
    """What decides the bytes of a PNG, and what is known of it, besides the source: Pillow, its zlib, the code in this
    file and in lookalikes.py, and all of `split.image`.
    """
    code = hash_bytes(b"".join(Path(file).read_bytes() for file in (__file__, lookalikes.__file__)))[:16]
    wanted = [f"{name} {value}" for name, value in params]
    return ", ".join([f"pillow {PIL.__version__}", f"zlib {features.version('zlib')}", f"code {code}", *wanted])


def check_array(pixels: NDArray[np.uint8], source: str) -> None:
    """Raise InputError, naming `source`, for an array that is no image: uint8 (H, W) or (H, W, 3) is expected."""
    if not (pixels.dtype == np.uint8 and pixels.size and (pixels.ndim == 2 or pixels.shape[2:] == (3,))):
        raise InputError(
            f"{source}: shape {pixels.shape} and type {pixels.dtype}; an image is uint8 of shape (H, W) or (H, W, 3)."
        )


def decode_image(data: bytes, params: ImageParams) -> Decoded:
    """The upright image in the bytes of a file, in the mode and size that `params` want.

    Raises UnusableImage with the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of (broken metadata) is dropped here
        with lift_pillow_limit(params.max_pixels):
            try:
                image, remark = load_image(data, params)
                decoded = convert_image(image, params, remark)
                if image.format == "PNG" and decoded.pixels.shape[:2] == (image.height, image.width):
                    return decoded._replace(png=strip_png(data, name_mode(decoded.pixels)))
                return decoded
            except Image.DecompressionBombError as error:
                raise UnusableImage(f"more pixels than split.image.max_pixels ({params.max_pixels}) allows") from error
            except DECODER_ERRORS as error:
                raise UnusableImage(
                    f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"
                ) from error


@contextmanager
def lift_pillow_limit(max_pixels: int) -> Generator[None]:
    """Let Pillow open what `split.image.max_pixels` allows; its own limit is half of what it refuses."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def load_image(data: bytes, params: ImageParams) -> tuple[Image.Image, str]:
    """The upright image, of any mode, and a remark; raises UnusableImage, and whatever the decoder raises."""
    if not data:
        raise UnusableImage("the file is empty")
    with open_image(data, params) as image:
        if image.width * image.height > params.max_pixels:
            raise UnusableImage(
                f"{image.width}×{image.height} pixels, more than split.image.max_pixels ({params.max_pixels}) allows"
            )
        remark = check_frames(image, params)
        image.verify()
    with open_image(data, params) as image:  # verify() leaves it unusable
        image.load()
        if image.mode == "I" and image.format == "TIFF":
            raise UnusableImage("has values of 32 bits, whose range is not known; save it with 8 or 16 bits")
        turn = TRANSPOSE.get(read_orientation(image))
        return (image.transpose(turn) if turn is not None else image), remark or remark_depth(image, data)


def remark_depth(image: Image.Image, data: bytes) -> str:
    """A remark on an image of 16 bits, which says so where it uses fewer: scaled to 8, it comes out dark.

    Where Pillow keeps the upper byte alone, as of colours, what uses fewer than 8 bits counts as 8.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        used = int(np.asarray(image).max()).bit_length()
    elif read_depth(image, data) != 16:
        return ""
    elif image.mode == "CMYK":  # inks, of which few are light
        used = 16
    else:
        colours = len(image.getbands()) - ("A" in image.getbands())
        used = 8 + int(np.asarray(image)[..., :colours].max()).bit_length()
    return "16 bits scaled to 8" + (f", though only {used} are used: it comes out dark" if used <= NARROW else "")


def read_depth(image: Image.Image, data: bytes) -> int:
    """The bits of one value in a PNG or TIFF; 8 for other formats."""
    if image.format == "PNG":
        return data[24]  # in IHDR
    return image.tag_v2.get(BITSPERSAMPLE, (8,))[0] if isinstance(image, TiffImageFile) else 8


def open_image(data: bytes, params: ImageParams) -> Image.Image:
    """The image, not decoded yet, where its content is of an allowed format."""
    try:
        return Image.open(io.BytesIO(data), formats=params.formats.split())
    except UnidentifiedImageError as error:
        found = name_format(data)
        if found:
            raise UnusableImage(f"is a {found}, which split.image.formats does not name") from error
        raise UnusableImage(f"is not an image of a known format: it begins with {data[:16]!r}") from error


def name_format(data: bytes) -> str:
    """The format of the image out of all that we know, '' where it is none of them."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.format or ""
    except DECODER_ERRORS:
        return ""


def check_frames(image: Image.Image, params: ImageParams) -> str:
    """A remark where the first of several frames is taken; raises UnusableImage where that is refused.

    MPO, a JPEG with a second view or a depth map behind it as telephones write it, is one image.
    """
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return ""
    if params.animation == "refuse":
        raise UnusableImage("has several frames, which split.image.animation refuses")
    return "first of several frames"


def read_orientation(image: Image.Image) -> int:
    """The Exif orientation, 1 to 8; 1 (upright) where there is none or the metadata are broken, which are dropped."""
    try:
        value: object = image.getexif().get(ORIENTATION, 1)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def convert_image(image: Image.Image, params: ImageParams, remark: str = "") -> Decoded:
    """The image in the mode and size that `params` want.

    Raises UnusableImage for values without a known range.
    """
    upright = convert_mode(image, params)
    pixels = np.array(fit_image(upright, params))
    same = pixels.shape[:2] == (upright.height, upright.width)
    return Decoded(pixels, remark, "" if same else hash_pixels(upright.mode, np.asarray(upright)))


def convert_array(pixels: NDArray[np.uint8], params: ImageParams) -> Decoded:
    """As `convert_image`, from uint8 pixels of shape (H, W) or (H, W, 3); the same array where nothing is to do."""
    mode, (height, width) = name_mode(pixels), pixels.shape[:2]
    if params.mode in ("keep", mode) and (params.width, params.height) in ((0, 0), (width, height)):
        return Decoded(pixels, "", "")
    return convert_image(Image.fromarray(pixels), params)


def convert_mode(image: Image.Image, params: ImageParams) -> Image.Image:
    """The image as L or RGB: 16 bits are scaled to 8, transparency is laid on the background."""
    grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = scale_to_8_bit(image)
    if image.has_transparency_data:
        image = lay_on_background(image, params.background)
    mode = params.mode if params.mode != "keep" else "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def scale_to_8_bit(image: Image.Image) -> Image.Image:
    """0 to 65,535 brought to 0 to 255, rounded; Pillow's own conversion cuts off all above 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > FULL_16_BIT:
        raise UnusableImage(
            f"mode {image.mode} with values from {values.min():g} to {values.max():g}; expected whole numbers of at "
            "most 16 bits"
        )
    scaled = (values.astype(np.uint32) * 255 + FULL_16_BIT // 2) // FULL_16_BIT
    grey = Image.fromarray(scaled.astype(np.uint8))
    if "transparency" in image.info:  # the one value, of 16 bits, that a PNG declares transparent
        grey.putalpha(Image.fromarray(values != image.info["transparency"]).convert("L"))
    return grey


def lay_on_background(image: Image.Image, background: int) -> Image.Image:
    """The image without its transparency, over a uniform grey, as RGB."""
    paper = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")


def fit_image(image: Image.Image, params: ImageParams) -> Image.Image:
    """The L or RGB image at the wanted size, as `split.image.fit` says."""
    size = (params.width, params.height)
    if params.width == 0 or image.size == size:
        return image
    method = Image.Resampling[params.filter.upper()]
    if params.fit == "crop":
        return ImageOps.fit(image, size, method)
    if params.fit == "pad":
        return ImageOps.pad(image, size, method, color=(params.background,) * len(image.getbands()))
    return image.resize(size, method)


def strip_png(data: bytes, mode: str) -> bytes:
    """The PNG without anything but its pixels (metadata, text, colour profiles), as it was compressed.

    b'' where its values are not those of `mode` in 8 bits as they stand: palettes, transparency, other depths, frames.
    `data` was decoded before, so its chunks are whole.
    """
    kept = [PNG_SIGNATURE]
    place = len(PNG_SIGNATURE)
    if data[place + 16 : place + 18] != PNG_KINDS[mode]:
        return b""
    while place + 12 <= len(data):
        name = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if name in (b"tRNS", b"acTL"):
            return b""
        if name in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(data[place:end])
        if name == b"IEND":
            return b"".join(kept)
        place = end
    return b""


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of a grey (H, W) or RGB (H, W, 3) image; nothing but the pixels goes in."""
    buffer, size = io.BytesIO(), (pixels.shape[1], pixels.shape[0])
    Image.frombytes(name_mode(pixels), size, pixels.tobytes()).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def sum_channels(images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For images (N, H, W) or (N, H, W, 3) the sum of each one's values and of their squares, both (N, channels).

    Exact, since an image's stay far below 2^53.
    """
    count, height, width = images.shape[:3]
    # A channel's values side by side take a third of the time.
    values = np.moveaxis(images.reshape(count, height * width, -1), 2, 1).astype(np.float64, order="C")
    return values.sum(axis=2).astype(np.int64), np.einsum("ncp,ncp->nc", values, values).astype(np.int64)
