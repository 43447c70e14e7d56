"""A WebSocket client: ws_client.py PROXY-HOST PROXY-PORT. It fails where an exchange does not go as it should."""

import asyncio
import sys

import websockets

HOST, PORT = sys.argv[1], int(sys.argv[2])
CHAT = "ws://users/chat?room=1"


def connect(**settings):
    # A listener is both proxy and server: the connection goes there, whatever the URI names.
    return websockets.connect(CHAT, host=HOST, port=PORT, max_size=None, subprotocols=["chat"], **settings)


async def main():
    async with connect() as socket:
        assert socket.subprotocol == "chat"
        for message in ("hello", "", "\u00e9" * 100, b"\x00\xff", b""):
            await socket.send(message)
            assert await socket.recv() == message
        large = bytes(range(256)) * 20_000
        await socket.send(large)
        assert await socket.recv() == large
        # Both directions at once.
        sent = [str(number) * 50 for number in range(1000)]

        async def send():
            for message in sent:
                await socket.send(message)

        sending = asyncio.ensure_future(send())
        for message in sent:
            assert await socket.recv() == message
        await sending
        await (await socket.ping())
        await socket.close(4000, "enough")
    assert socket.close_code == 4000, socket.close_code

    async with connect(compression=None) as socket:
        await socket.send("close")
        try:
            await socket.recv()
        except websockets.ConnectionClosed:
            pass
        assert (socket.close_code, socket.close_reason) == (4001, "as asked"), socket.close_code


asyncio.run(asyncio.wait_for(main(), 60))
