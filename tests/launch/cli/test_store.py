"""`thinwire store` goes on when whoever it writes to has gone."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import unittest
from datetime import timedelta

from torch.distributed import TCPStore

import jobs


def client_of(port):
    return TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False,
                    timeout=timedelta(seconds=20))


def recorded(port):
    """What a client sends to the store at `port`: to be let in, and then for one request."""
    sent = bytearray()

    def copy(source, target, record):
        while data := source.recv(1 << 16):
            if record:
                sent.extend(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as between:
        clients = []
        joined = threading.Thread(
            target=lambda: clients.append(client_of(between.getsockname()[1])))
        joined.start()
        # A first connection may only ask whether anybody listens.
        near, far = between.accept()[0], socket.create_connection(("127.0.0.1", port))
        copies = [threading.Thread(target=copy, args=(near, far, True)),
                  threading.Thread(target=copy, args=(far, near, False))]
        for thread in copies:
            thread.start()
        joined.join()
        let_in = bytes(sent)
        clients[0].add("asked", 1)
        request = bytes(sent[len(let_in):])
        clients.clear()
        for thread in copies:
            thread.join()
        near.close()
        far.close()
    return let_in, request


class Store(unittest.TestCase):
    def start(self, *options, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL):
        store = jobs.start_store(*options, stdout=stdout, stderr=stderr)

        def end():
            if store.poll() is None:
                store.send_signal(signal.SIGTERM)
            store.wait()
            for stream in (store.stdout, store.stderr):
                if stream:
                    stream.close()

        self.addCleanup(end)
        return store

    def test_clients_that_die_before_their_answers(self):
        store = self.start()
        port = int(store.stdout.readline().rsplit(":", 1)[1])
        let_in, request = recorded(port)
        self.assertGreater(len(request), 0)
        before = client_of(port).add("asked", 0)
        for _ in range(20):
            # The first answer finds nobody there, and the next ones a connection that is no more.
            with socket.create_connection(("127.0.0.1", port)) as dies:
                dies.sendall(let_in + 50 * request)
        client = client_of(port)
        self.assertIsNone(store.poll(), "the store has ended")
        self.assertGreater(client.add("asked", 0), before)

    def test_one_that_a_test_leaves_behind_ends_with_it(self):
        # A program that is killed in the middle of its test.
        program = ("import jobs, time\n"
                   "print(jobs.start_store().pid, flush=True)\n"
                   "time.sleep(60)\n")
        path = os.pathsep.join([os.path.dirname(jobs.__file__), *sys.path])
        starter = subprocess.Popen([sys.executable, "-B", "-c", program], text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   env={**os.environ, "PYTHONPATH": path})
        store = int(starter.stdout.readline())
        with open(f"/proc/{store}/comm") as name:
            self.assertEqual(name.read().strip(), "thinwire")
        end = os.pidfd_open(store)
        self.addCleanup(os.close, end)
        starter.kill()
        starter.communicate()
        # Readable once the process has ended; it is nobody's child here.
        ended = select.select([end], [], [], 20)[0]
        if not ended:
            os.kill(store, signal.SIGKILL)
        self.assertTrue(ended, "the store outlives who started it")

    def test_nobody_reads_its_output(self):
        read, write = os.pipe()
        os.close(read)
        port = jobs.free_port()
        store = self.start("--port", port, stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        self.assertEqual(client_of(port).add("asked", 1), 1)
        self.assertIsNone(store.poll(), "the store has ended")
        store.send_signal(signal.SIGTERM)
        self.assertEqual(store.wait(timeout=20), 1)
        self.assertEqual(store.stderr.read(), "thinwire: cannot write to standard output\n")


if __name__ == "__main__":
    unittest.main()
