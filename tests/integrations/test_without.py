"""Without the libraries, the modules say what to install."""

import subprocess
import sys

import pytest

REFUSED = """
import sys
for name in ("lightning", "pytorch_lightning", "transformers"):
    sys.modules[name] = None
import lltoolkit.integrations
try:
    import lltoolkit.integrations.{module}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(("module", "library"), [("lightning", "PyTorch Lightning"), ("huggingface", "transformers")])
def test_a_missing_library_is_told_with_its_extra(module, library):
    code = REFUSED.format(module=module)
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert f"needs {library}: pip install 'lltoolkit[integrations]'" in told
