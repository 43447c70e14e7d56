"""A gRPC server on a port of its own, which it prints. Messages are bytes; no code is generated.

It prints "started METHOD" when a call arrives whose end counts, and "ended METHOD" when that is over, however it ends. A
line on its standard input stops it gracefully.
"""

import sys
import threading
from concurrent import futures

import grpc

NAME = sys.argv[1]


def say(text):
    print(text, flush=True)


def metadata(context):
    return {key: value for key, value in context.invocation_metadata()}


def over(method, context):
    """An event that is set when the call has ended, and told on standard output."""
    ended = threading.Event()

    def end():
        ended.set()
        say(f"ended {method}")

    say(f"started {method}")
    if not context.add_callback(end):
        end()
    return ended


def unary(request, context):
    sent = metadata(context)
    context.send_initial_metadata((("x-seen", sent.get("x-sent", "")), ("x-te", "te" in sent and sent["te"] or "")))
    context.set_trailing_metadata((("x-server", NAME), ("x-seen-bin", sent.get("x-sent-bin", b""))))
    return request


def fail(request, context):
    context.set_trailing_metadata((("x-server", NAME),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "100 % wrong: \u00e9")


def server_stream(request, context):
    count, size = map(int, request.split())
    for number in range(count):
        yield str(number).encode().ljust(size, b".")
    context.set_trailing_metadata((("x-count", str(count)),))


def client_stream(requests, context):
    """Answers its head at once, and its message at the end."""
    context.send_initial_metadata((("x-early", "1"),))
    count = size = 0
    for request in requests:
        count, size = count + 1, size + len(request)
    return f"{count} {size}".encode()


def bidi(requests, context):
    context.send_initial_metadata((("x-early", "1"),))
    for request in requests:
        yield request
    context.set_trailing_metadata((("x-server", NAME),))


def wait(requests, context):
    """Answers what it is sent, and never ends by itself."""
    ended = over("Wait", context)
    try:
        for request in requests:
            yield request
    except Exception:
        return
    ended.wait()


def wait_unary(request, context):
    """Never answers anything."""
    over("WaitUnary", context).wait()
    return b""


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Wait": grpc.stream_stream_rpc_method_handler(wait),
    "WaitUnary": grpc.unary_unary_rpc_method_handler(wait_unary),
}

server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=32),
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", HANDLERS),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
say(f"port {port}")
if sys.stdin.readline():
    stopping = server.stop(grace=30)
    say("stopping")
    stopping.wait()
    say("stopped")
