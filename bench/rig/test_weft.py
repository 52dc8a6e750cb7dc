"""Tests of what is said about a wrong binary."""

import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from rig import weft


class NamedTest(unittest.TestCase):
    def refusal(self, path: str) -> str:
        with mock.patch.dict(os.environ, {"WEFT_PROXY": path}), self.assertRaises(SystemExit) as refused:
            weft.binary()
        return str(refused.exception)

    def test_wrong_binary_is_one_line_that_names_the_variable(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(self.refusal(folder), f"WEFT_PROXY: {folder!r} is not a file: name a binary of weft-proxy")
            text = Path(folder) / "text"
            text.write_text("text")
            self.assertEqual(self.refusal(str(text)), f"WEFT_PROXY: {str(text)!r} is not executable: chmod +x {text}")
            text.chmod(0o755)
            with mock.patch.dict(os.environ, {"WEFT_PROXY": str(text)}):
                self.assertEqual(weft.binary(), text)

    def test_missing_variable_is_one_line(self) -> None:
        with mock.patch.dict(os.environ), self.assertRaises(SystemExit) as refused:
            os.environ.pop("WEFT_PROXY_BEFORE", None)
            weft.named("WEFT_PROXY_BEFORE")
        self.assertIn("WEFT_PROXY_BEFORE", str(refused.exception))


if __name__ == "__main__":
    unittest.main()
