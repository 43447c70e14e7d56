"""A WebSocket server on a port of its own, which it prints. It echoes, and says how each connection was closed.

The message "close" has it close the connection itself, with 4001.
"""

import asyncio

import websockets


def say(text):
    print(text, flush=True)


async def serve(socket, *_path):
    say(f"opened {socket.subprotocol}")
    try:
        async for message in socket:
            if message == "close":
                await socket.close(4001, "as asked")
            else:
                await socket.send(message)
    except websockets.ConnectionClosed:
        pass
    say(f"closed {socket.close_code}")


async def main():
    async with websockets.serve(serve, "127.0.0.1", 0, max_size=None, subprotocols=["chat"]) as server:
        say(f"port {server.sockets[0].getsockname()[1]}")
        await asyncio.Future()


asyncio.run(main())
