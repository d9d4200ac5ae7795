"""Stub of app.export: prints its arguments as JSON, and writes an ONNX file with the JSON beside it."""

import json
import sys
from pathlib import Path

for word in sys.argv[1:]:
    if word.startswith("out=") and word.endswith(".onnx"):
        out = Path(word[4:])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("onnx")
        out.with_suffix(".json").write_text(json.dumps({"file": out.name}))

print(json.dumps(sys.argv[1:]))
