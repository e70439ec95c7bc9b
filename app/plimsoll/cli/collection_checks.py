"""What `plimsoll doctor` looks at of the collections: their folder and their file."""

import os
import shutil
from pathlib import Path

from plimsoll import files
from plimsoll.cli.findings import Finding, State, mib, nearest
from plimsoll.corpora.database import FILE_NAME, faults_of

CHECK = "collections"
REMEDY = "let this user into it, or set PLIMSOLL_DATA_DIR to another folder"
# Where the locks that SQLite asks for may be granted to two machines at once.
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "nfs", "nfs4", "smb3", "smbfs"}
)


def collections(folder: Path) -> Finding:
    """Whether the folder can be written to and keeps what is written, and the file is sound."""
    there = nearest(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(CHECK, State.FAIL, f"{folder}: {there} cannot be written to", REMEDY)
    path, kind = folder / FILE_NAME, files.file_system(there)
    is_there = path.exists()
    faults = faults_of(path) if is_there else []
    if faults:
        remedy = "put a backup in its place, or take it away to begin anew"
        return Finding(CHECK, State.FAIL, f"{path} is damaged: {faults[0]}", remedy)
    held = mib(path.stat().st_size) if is_there else "none yet"
    found = f"{folder}, on {kind or 'a disk'}: {held}, {mib(shutil.disk_usage(there).free)} free"
    if kind in NETWORK_FILE_SYSTEMS:
        remedy = "set PLIMSOLL_DATA_DIR to a local disk: locks over a network do not hold"
        return Finding(CHECK, State.WARN, found, remedy)
    if files.memory_file_system(there):
        remedy = "set PLIMSOLL_DATA_DIR to a disk: what is in memory ends with the machine"
        return Finding(CHECK, State.WARN, found, remedy)
    return Finding(CHECK, State.OK, found)
