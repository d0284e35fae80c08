"""Random changes to bytes, JSON, XML and Parquet tables; what is drawn follows from the generator alone."""

import json
import random
from typing import Any

import pyarrow as pa

ODD_NUMBERS = (0, -1, 1, 0.5, -0.0, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, 1e308, -1e308, 5e-324, 1e18)
ODD_TEXTS = (
    "",
    " ",
    "..",
    "a\0b",
    "../../etc/passwd",
    "/etc/passwd",
    "\ud800",
    "\u202e",
    "NaN",
    "1",
    "é\n",
    "x" * 5000,
)
DEEP = "[" * 50 + "]" * 50


def odd_value(draw: random.Random) -> Any:
    return draw.choice(
        (
            None,
            True,
            False,
            [],
            {},
            [[]],
            [None],
            {"": None},
            json.loads(DEEP),
            float("nan"),
            float("inf"),
            -float("inf"),
            draw.choice(ODD_NUMBERS),
            draw.choice(ODD_TEXTS),
            draw.randint(-9, 99),
            draw.uniform(-99, 99),
            [draw.choice(ODD_NUMBERS)] * draw.randint(1, 5),
            "".join(map(chr, draw.choices(range(1, 0x3000), k=4))),
        )
    )


def mutate_bytes(draw: random.Random, content: bytes) -> bytes:
    """A few bytes set, flipped, removed, put in or repeated; sometimes cut off."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        place = draw.randrange(len(changed) + 1)
        end = place + draw.choice((1, 2, 4, 8, 50))
        match draw.randrange(6):
            case 0 if place < len(changed):
                changed[place] = draw.randrange(256)
            case 1 if place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
            case 2:
                del changed[place:end]
            case 3:
                changed[place:place] = draw.randbytes(draw.choice((1, 4, 30)))
            case 4:
                changed[place:place] = changed[place:end]
            case _:
                number = draw.choice((0, 0xFF, 0x7F, 0x80, 1)) * 0x01010101 & 0xFFFFFFFF
                changed[place : place + 4] = number.to_bytes(4, "little")
    if draw.random() < 0.1:
        del changed[draw.randrange(len(changed) + 1) :]
    return bytes(changed)


def mutate_tree(draw: random.Random, tree: Any) -> Any:
    """A JSON value with a few of its parts replaced, removed, repeated or renamed; the given one is left as it is."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw.choice((1, 1, 2, 4))):
        parents = [part for part in _parts(tree) if isinstance(part, dict | list) and part]
        if not parents or draw.random() < 0.01:
            return odd_value(draw)
        parent = draw.choice(parents)
        key = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        match draw.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[draw.choice((*parent, *ODD_TEXTS))] = parent.pop(key)
            case 1:
                parent.insert(draw.randrange(len(parent) + 1), parent[key])
            case 2:
                others = list(_parts(tree))
                parent[key] = json.loads(json.dumps(draw.choice(others)))
            case _:
                parent[key] = odd_value(draw)
    return tree


def _parts(tree: Any) -> list[Any]:
    """The value and all within it, without recursion."""
    found, waiting = [], [tree]
    while waiting:
        part = waiting.pop()
        found.append(part)
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return found


def json_bytes(draw: random.Random, tree: Any) -> bytes:
    """Mostly a changed tree; else, or besides, changed bytes."""
    text = json.dumps(mutate_tree(draw, tree) if draw.random() < 0.8 else tree).encode()
    if draw.random() < 0.05:
        text = text.decode().encode(draw.choice(("utf-16", "utf-8-sig", "utf-32")))
    return mutate_bytes(draw, text) if draw.random() < 0.4 else text


XML_PIECES = (
    '<!DOCTYPE a [<!ENTITY x "ha">]>',
    "&x;",
    "&#0;",
    "&#x10FFFF;",
    "<![CDATA[ ]]>",
    "<!-- -->",
    "<?php ?>",
    "\0",
    "<object>",
    "</object>",
    "<annotation>",
    "<part><name>x</name></part>",
    '<?xml version="1.0" encoding="utf-16"?>',
    "<size><width>1e3</width><height>-1</height></size>",
    "<bndbox/>",
    "<difficult>2</difficult>",
    ' a="1"',
    "<a:b/>",
    '<x xmlns:a="u"/>',
    "<name>" + "n" * 3000 + "</name>",
    "<d>" * 300,
    "\ufffe",
)
XML_NUMBERS = ("nan", "-inf", "1e308", "1e-400", "", " 7 ", "٣", "1_000", "0x10", "+5", "9" * 400, "0", "-3", "2.5")


def xml_bytes(draw: random.Random, text: str) -> bytes:
    """Tags and texts replaced, removed, repeated or put in; sometimes in another encoding; sometimes changed bytes."""
    pieces = text.replace("<", "\n<").replace(">", ">\n").split("\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(pieces))
        match draw.randrange(5):
            case 0:
                pieces[place] = draw.choice(XML_NUMBERS)
            case 1:
                pieces.insert(place, draw.choice(XML_PIECES))
            case 2:
                pieces.insert(place, draw.choice(pieces))
            case 3:
                pieces[place] = draw.choice(pieces)
            case _:
                del pieces[place]
                pieces = pieces or [""]
    encoding = draw.choice(("utf-8",) * 9 + ("utf-16", "utf-8-sig", "latin-1", "utf-7"))
    content = "".join(pieces).encode(encoding, "replace")
    return mutate_bytes(draw, content) if draw.random() < 0.4 else content


def mutate_table(draw: random.Random, table: pa.Table) -> pa.Table:
    """A column of the table, or of its lists, lost, renamed, of another type, emptied or with odd values."""
    place = draw.randrange(table.num_columns)
    name = table.column_names[place]
    match draw.randrange(6):
        case 0:
            return table.remove_column(place)
        case 1:
            return table.rename_columns(["other" if i == place else n for i, n in enumerate(table.column_names)])
        case 2:
            kind = draw.choice((pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int32()), pa.null(), pa.bool_()))
            return table.set_column(place, name, pa.nulls(table.num_rows, kind))
        case 3:
            return table.slice(0, draw.randrange(table.num_rows + 1))
        case 4:
            return pa.concat_tables([table, table])
    rows = table.to_pylist()
    kind = table.schema.field(name).type
    for _ in range(draw.choice((1, 3))):
        row = draw.choice(rows)
        if not pa.types.is_list(kind):
            row[name] = draw.choice((None, -1, 0, 3, 2**31 - 1, -(2**31)))
        elif not row[name]:
            row[name] = None
        else:
            entry = draw.choice(row[name])
            member = draw.choice(list(entry))
            is_float = pa.types.is_floating(kind.value_type.field(member).type)
            odd = (None, float("nan"), float("inf"), -float("inf"), 3e38, -1.0) if is_float else (None, -1, 0, 99, 127)
            entry[member] = draw.choice(odd)
    return pa.Table.from_pylist(rows, schema=table.schema)
