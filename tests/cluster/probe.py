"""What test_cluster.py runs on the hosts; prints one line of JSON.

    probe.py transfer BYTES    rank 1 sends that much to rank 0, which measures the rate
    probe.py surroundings      what a host sees of itself and of the world
"""

import errno
import json
import os
import socket
import sys
import time

PORT = 20777


def receive(count):
    with socket.create_server(("0.0.0.0", PORT)) as server:
        connection, _ = server.accept()
        with connection:
            # The clock starts with the first bytes, when the bucket of the link is still full.
            received = len(connection.recv(1 << 20))
            start = time.monotonic()
            first = received
            while received < count:
                received += len(connection.recv(1 << 20)) or sys.exit("the sender has gone")
            seconds = time.monotonic() - start
    return {"received_bytes": received, "received_bytes_per_second": (received - first) / seconds}


def send(count, address):
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection((address, PORT), timeout=20) as connection:
                connection.sendall(bytes(count))
            return {"sent_bytes": count}
        except ConnectionRefusedError:
            # Rank 0 does not listen yet.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def surroundings():
    outside = "reachable"
    # An address reserved for documentation: never anybody's, and routed like any foreign one.
    with socket.socket() as probe:
        probe.settimeout(3)
        try:
            probe.connect(("192.0.2.1", 80))
        except OSError as error:
            outside = errno.errorcode.get(error.errno, str(error))
    return {
        "interfaces": sorted(name for _, name in socket.if_nameindex()), "outside": outside,
        "host": socket.gethostname(), "address_of_n1": socket.gethostbyname("n1"),
        "variables": [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK",
                                                    "LOCAL_WORLD_SIZE", "MASTER_ADDR")]}


def main():
    if sys.argv[1] == "surroundings":
        result = surroundings()
    elif os.environ["RANK"] == "0":
        result = receive(int(sys.argv[2]))
    else:
        result = send(int(sys.argv[2]), os.environ["MASTER_ADDR"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
