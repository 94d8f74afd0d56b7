"""A load balancer for the tests: each request goes to the next server, and on to another one where that is away."""

import asyncio
import itertools
import threading
from contextlib import closing, contextmanager

from support import free_port


class RoundRobin:
    "Speaks HTTP/1.1 with browsers, one request on each connection; run by a thread of its own."
    def __init__(self, ports):
        self.ports, self.port = ports, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.served = dict.fromkeys(ports, 0)   # Answers of each server
        self.changing = dict.fromkeys(ports, 0)   # Requests other than GET that a server is at work on
        self.drained = set()   # Servers that get no more of these
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", self.port), self._loop).result(10)
        return self

    def __exit__(self, *_):
        async def stop():
            self._listener.close()
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others: task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @contextmanager
    def without_changes(self, port):
        "Send a server no more than GET for the length of a `with` block, which begins when it has answered all else."
        async def drain():
            self.drained.add(port)
            while self.changing[port]: await asyncio.sleep(0.001)
        asyncio.run_coroutine_threadsafe(drain(), self._loop).result(10)
        try: yield
        finally: self._loop.call_soon_threadsafe(self.drained.discard, port)

    async def _serve(self, reader, writer):
        with closing(writer):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
                body = await reader.readexactly(length)
                await self._forward(_close_after(head) + body, head.split(b" ", 1)[0] == b"GET", reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError): return   # the browser has left, or the test is over

    async def _forward(self, request, is_get, reader, writer):
        "Try the servers in turn. What a server may have begun to change is not sent to another one."
        first = next(self._turn) % len(self.ports)
        for port in self.ports[first:] + self.ports[:first]:
            if port in self.drained and not is_get: continue
            self.changing[port] += not is_get
            try: sent = await self._try(port, request, reader, writer)
            finally: self.changing[port] -= not is_get
            if sent or (sent is None and not is_get): return
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    async def _try(self, port, request, reader, writer):
        "True: the server's answer has gone to the browser; None: the server has taken the request and gave no answer; False: it is away."
        try: from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        except OSError: return False
        with closing(to_server):
            left = asyncio.ensure_future(reader.read(1))   # ends when the browser leaves, so that a stream ends too
            try:
                to_server.write(request)
                answered = None
                while True:
                    more = asyncio.ensure_future(from_server.read(65536))
                    done, _ = await asyncio.wait({more, left}, return_when=asyncio.FIRST_COMPLETED)
                    if more not in done:
                        more.cancel()
                        return True
                    if not (data := more.result()): break
                    if not answered: self.served[port] += 1
                    answered = True
                    writer.write(data)
                    await writer.drain()
                return answered
            except ConnectionResetError: return answered
            finally: left.cancel()


def _close_after(head):
    "Ask the server, and by its answer the browser, to close the connection after this request."
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])
