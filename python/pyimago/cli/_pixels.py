"""A picture of pixels as a PNG file: rectangles and text in some colours, without a library."""

from __future__ import annotations

import struct
import zlib
from base64 import b85decode

GLYPH_WIDTH = 9
GLYPH_HEIGHT = 15
# `9x15` of the X Window System's fixed fonts, which is in the public domain: bits of ` ` to `~`, row by row.
FONT = (
    "c-n1My-piJ5Z*hl@g73*I*B48A$fhAQ#+lDMBKqe*b#-LP^2Wu3s6!ZaX1KFk>X<I0V0$t&yd0p9w24Pla&Xcpm2duX7=yaCL<wk"
    "zx#G(zS(cjge-^ekt`OR5dseiNkp;4NjmdEv=vZAAYN@Y6r+v0Kin*11ZX!b3eJKc{VpV9g^m+(@S@uacDULCRos*w0J1KH2izn7"
    "!_t>;B!zw%9qtdQyA5`n0A*Q(mrVudW_3ay1~Alv03v6MQJuFo4g+kqNRz4V>@-o0G;So&xPHV`XrNg_iVbLUuvzN14n~7?dkYmQ"
    "#$Vq%x^ft`D`@)Xdr=qwb6^v`5d(d&ydPG5K-qwvzk<2#Os$OGx~s(jl>8V&Fkg*S$2}o!vjL_Yb0`WytT+k*%gmO2dGYpn!D^+R"
    "N78};Z54w^O}Kd$25i0!T6S%x+C)a&nVzX(;5^728D@kQpv1|sTMdXsApah7=(3He@{8}8#%|P-<a$6X3Ok}4MJ<-9E%I&Vlx5N5"
    "XZt^fkxdFfkWOBAswy~j*}Bn!z};e}lJOPHFV-w$5c1r~K@L}lbJ(VJJ!C1)tpWhc({Q!!XAWaBj3#d`ga%rC#Mvs#ZR--Kl1f`*"
    "Xtj;87LOE(FdvT}?Geiy&FX!Yl=iU6|D!S22735v?tATG@bR~u`q34L+v}DUW9;~Yz~k*X%GX;I13YF;cggcu9J7VHetWjvX|mcZ"
    "pvO)Xb8<EKD_wsOa7ABgOT!jBQd{WfcfF_VS|1cyvJ_VSgHs<y_G_|OMR!`AoMr5FXXYe`5yz;yW?uh8hnt0&N1NCj9yy)MMnsjA"
    "fm)vL*a3NT9JZ`K6yW$n0_hW4rzu~`@#~wEkH8(?b*lW~U7`<q>-Y)E`p!>*x-|gcH!hCX*U&egWZji$(sR!JA8Cr=lm"
)


class Canvas:
    """`width` by `height` pixels, all in the first of `palette`, at most 256 colours as `#rrggbb`."""

    def __init__(self, width: int, height: int, palette: list[str]) -> None:
        self._width, self._height = width, height
        self._palette = palette
        self._rows = [bytearray(width) for _ in range(height)]
        self._font = zlib.decompress(b85decode(FONT))

    def rectangle(self, x: int, y: int, width: int, height: int, colour: str) -> None:
        """Fill it; what is outside of the picture is left out."""
        left, right = max(x, 0), min(x + width, self._width)
        if left < right:
            line = bytes([self._palette.index(colour)]) * (right - left)
            for row in self._rows[max(y, 0) : max(y + height, 0)]:
                row[left:right] = line

    def text(self, x: int, y: int, text: str, colour: str) -> None:
        """Write `text`, in ASCII, with its left upper corner at (x, y)."""
        ink, size = self._palette.index(colour), -(-GLYPH_WIDTH * GLYPH_HEIGHT // 8)
        for char in text:
            glyph = ord(char if " " <= char <= "~" else "?") - ord(" ")
            bits = int.from_bytes(self._font[size * glyph : size * (glyph + 1)], "big")
            for row in range(GLYPH_HEIGHT):
                for column in range(GLYPH_WIDTH):
                    pixel = GLYPH_WIDTH * GLYPH_HEIGHT - 1 - (row * GLYPH_WIDTH + column)
                    if bits >> pixel & 1:
                        self._rows[y + row][x + column] = ink
            x += GLYPH_WIDTH

    def png(self) -> bytes:
        """The file."""
        header = struct.pack(">IIBBBBB", self._width, self._height, 8, 3, 0, 0, 0)
        palette = b"".join(bytes.fromhex(colour[1:]) for colour in self._palette)
        unfiltered = b"\0"
        pixels = zlib.compress(b"".join(unfiltered + row for row in self._rows), 9)
        chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
