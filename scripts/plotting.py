"""What the plot_*.py scripts have in common: reading rows of JSON, writing a picture, saying what is wrong."""

import json
import pathlib
import sys


def read_document(path, fields, command):
    """What `command` wrote to a file, with a list "rows" of objects that have all of `fields`; raises
    ValueError that says what is wrong with it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = document.get("rows")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not what {command} writes: {error}") from error
    if not rows:
        raise ValueError(f"{path}: it has no rows")
    for row in rows:
        for field in fields:
            if field not in row:
                raise ValueError(f"{path}: {field} missing")
    return document


def add_output(parser):
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path,
                        help="picture to write, .svg or .png")


def parse(parser):
    """The options of a parser with add_output()."""
    options = parser.parse_args()
    if options.output.suffix not in (".svg", ".png"):
        parser.error(f"--output {options.output}: expected a name that ends in .svg or .png")
    return options


def exit_code(name, draw):
    """Of the script `name`: 0, or 1 after a sentence on what kept `draw` from its work."""
    try:
        draw()
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"{name}: {error}; pip install -r requirements-test.txt", file=sys.stderr)
        return 1
    return 0
