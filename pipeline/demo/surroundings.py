"""The environment of the page's process: nothing is written outside one folder, and nothing leaves the machine."""

import os
from pathlib import Path

OFF = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # this also turns off Gradio's look for newer versions
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_SSR_MODE": "False",  # a second server, by Node
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SHARE": "False",
}
FOLDERS = {
    "GRADIO_TEMP_DIR": "gradio",
    "GRADIO_EXAMPLES_CACHE": "examples",
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
}
LOCAL = ("127.0.0.1", "localhost")


def keep_to(folder: Path) -> None:
    """Sets the environment that Gradio reads when it is imported, so call this function before.

    Args:
        folder: For all files of Gradio and of the libraries that it imports.
    """
    os.environ.update(OFF)
    for name, below in FOLDERS.items():
        (folder / below).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder / below)
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server whether it runs, and no proxy may answer
        known = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*known, *(host for host in LOCAL if host not in known)])
