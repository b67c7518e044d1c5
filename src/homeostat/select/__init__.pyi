from .mbtl import MBTL as MBTL
