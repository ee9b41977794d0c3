# Speaks to a monitor with the QMP client of Ganeti, whose file is the first
# argument; the second is the monitor's socket. Of the rest of Ganeti that file needs
# errors, JSON and little else, for which the modules below stand.
import json
import sys
import types
from unittest.mock import MagicMock


class HypervisorError(Exception):
    pass


def quietly(f, *args, **kwargs):
    try:
        return f(*args, **kwargs)
    except Exception:
        return None


ganeti = types.ModuleType("ganeti")
ganeti.errors = types.SimpleNamespace(HypervisorError=HypervisorError, ProgrammerError=HypervisorError)
ganeti.serializer = types.SimpleNamespace(LoadJson=json.loads, DumpJson=lambda o: json.dumps(o).encode())
ganeti.utils = types.SimpleNamespace(IgnoreProcessNotFound=quietly, RetryOnSignal=lambda f, *a, **k: f(*a, **k))
ganeti.constants = MagicMock()
sys.modules.update({"ganeti": ganeti, "bitarray": MagicMock()})

monitor = types.ModuleType("monitor")
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), monitor.__dict__)
client = monitor.QmpConnection(sys.argv[2])
client.connect()
print("version", *client.version)
print("status", client.Execute("query-status")["status"])
client.Execute("stop")
print("status", client.Execute("query-status")["status"])
client.Execute("cont")
print("status", client.Execute("query-status")["status"])
for command, args in ("no-such", None), ("job-complete", {"id": "nobody"}), ("query-status", {"x": 1}):
    try:
        client.Execute(command, args)
    except HypervisorError as e:
        print(command, type(e).__name__, e)
client.close()
