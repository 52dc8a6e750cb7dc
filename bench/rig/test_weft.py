"""Tests of what is said about a wrong binary."""

import json
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


class IdentityTest(unittest.TestCase):
    def test_identity_is_that_of_the_role_and_trusts_the_ca(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            certs, proxy = Path(folder), Path(folder) / "proxy"
            for name in ("ca.pem", "a.pem", "a.key", "b.pem", "b.key"):
                (certs / name).write_text(name)
            for role, account in ("client", "a"), ("server", "b"):
                weft.write_files(role, 1, 2, certs, proxy)
                files = {path.name: path.read_text() for path in (proxy / weft.IDENTITY).iterdir()}
                bundle = json.dumps({"domains": {"bench.local": ["ca.pem"]}})
                expected = {"tls.crt": f"{account}.pem", "tls.key": f"{account}.key", "bundle.json": bundle}
                self.assertEqual(files, expected, role)
                self.assertIn("WEFT_IDENTITY", weft.environment(role, 1, 2, certs, proxy), role)
            self.assertNotIn("WEFT_IDENTITY", weft.environment("h1", 1, 2, certs, proxy))

    def test_missing_certificate_is_one_line_that_names_the_remedy(self) -> None:
        with tempfile.TemporaryDirectory() as folder, self.assertRaises(SystemExit) as refused:
            weft.write_files("client", 1, 2, Path(folder), Path(folder) / "proxy")
        self.assertIn(f"bench/certs.sh {folder} creates it", str(refused.exception))


if __name__ == "__main__":
    unittest.main()
