"""A gRPC client with one channel: grpc_client.py ADDRESS AUTHORITY SCENARIO. It fails where a call does not go as it should."""

import os
import queue
import sys
import time

import grpc

ADDRESS, AUTHORITY, SCENARIO = sys.argv[1:4]
TIMEOUT = 30

channel = grpc.insecure_channel(
    ADDRESS,
    options=[
        ("grpc.default_authority", AUTHORITY),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ],
)


def say(text):
    print(text, flush=True)


def unary(method="Unary"):
    return channel.unary_unary(f"/test.Echo/{method}")


def bidi(method="Bidi"):
    return channel.stream_stream(f"/test.Echo/{method}")


class Requests:
    """Requests that are sent when they are put."""

    def __init__(self):
        self.queue = queue.Queue()

    def put(self, message):
        self.queue.put(message)

    def end(self):
        self.queue.put(None)

    def __iter__(self):
        return self

    def __next__(self):
        message = self.queue.get()
        if message is None:
            raise StopIteration
        return message


def expect(code, call, *args, details="", **kwargs):
    try:
        result = call(*args, timeout=kwargs.pop("timeout", TIMEOUT), **kwargs)
        result = list(result) if not isinstance(result, bytes) else result
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert details in error.details(), error
        return error
    raise AssertionError(f"expected {code}, got {result!r}")


def kinds():
    sent = (("x-sent", "1"), ("x-sent-bin", b"\x00\xff\x80"))
    response, call = unary().with_call(b"hello", metadata=sent, timeout=TIMEOUT)
    assert response == b"hello"
    assert dict(call.initial_metadata())["x-seen"] == "1", call.initial_metadata()
    trailers = dict(call.trailing_metadata())
    assert trailers["x-seen-bin"] == b"\x00\xff\x80" and trailers["x-server"] == "one", trailers
    assert unary()(b"", timeout=TIMEOUT) == b""
    large = bytes(range(256)) * 40_000
    assert unary()(large, timeout=TIMEOUT) == large

    stream = channel.unary_stream("/test.Echo/ServerStream")(b"300 10000", timeout=TIMEOUT)
    for number, message in enumerate(stream):
        assert message == str(number).encode().ljust(10000, b".")
    assert number == 299 and dict(stream.trailing_metadata())["x-count"] == "300"

    upload = channel.stream_unary("/test.Echo/ClientStream")
    assert upload((b"x" * 10000 for _ in range(300)), timeout=TIMEOUT) == b"300 3000000"
    assert upload(iter(()), timeout=TIMEOUT) == b"0 0"

    requests = Requests()
    call = bidi()(requests, timeout=TIMEOUT)
    # The response's head comes before the first message of either side.
    assert dict(call.initial_metadata())["x-early"] == "1"
    for number in range(200):
        message = str(number).encode() * 100
        requests.put(message)
        assert next(call) == message
    for _ in range(16):
        requests.put(large[:1_000_000])
    for _ in range(16):
        assert next(call) == large[:1_000_000]
    requests.end()
    assert list(call) == []
    assert call.code() == grpc.StatusCode.OK and dict(call.trailing_metadata())["x-server"] == "one"

    error = expect(grpc.StatusCode.FAILED_PRECONDITION, unary("Fail"), b"", details="100 % wrong: \u00e9")
    assert dict(error.trailing_metadata())["x-server"] == "one"
    expect(grpc.StatusCode.UNIMPLEMENTED, unary("Nothing"), b"")


def cancel():
    """Cancels a stream whose both directions are open."""
    call = bidi("Wait")(Requests())
    sys.stdin.readline()
    call.cancel()
    assert call.code() == grpc.StatusCode.CANCELLED, call.code()


def cancel_unary():
    """Cancels a call that has no answer yet."""
    call = unary("WaitUnary").future(b"")
    sys.stdin.readline()
    call.cancel()


def hang():
    """Is killed in the middle of a stream."""
    requests = Requests()
    call = bidi("Wait")(requests)
    requests.put(b"hello")
    assert next(call) == b"hello"
    say("hanging")
    time.sleep(600)


def deadline():
    started = time.monotonic()
    expect(grpc.StatusCode.DEADLINE_EXCEEDED, unary("WaitUnary"), b"", timeout=0.5)
    assert time.monotonic() - started < 20
    expect(grpc.StatusCode.DEADLINE_EXCEEDED, bidi("Wait"), iter((b"hello",)), timeout=0.5)


def proxy_deadline():
    """The proxy's own deadline: this client would wait for ever. The server is told of it, and may be the one that ends it."""
    expect(grpc.StatusCode.DEADLINE_EXCEEDED, unary("WaitUnary"), b"", timeout=None)
    requests = Requests()
    call = bidi("Wait")(requests)
    requests.put(b"hello")
    assert next(call) == b"hello"
    try:
        next(call)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    else:
        raise AssertionError("a message")


def expect_status():
    """grpc_client.py ... expect_status CODE PART-OF-DETAILS"""
    expect(getattr(grpc.StatusCode, sys.argv[4]), unary(), b"", details=sys.argv[5])


def broken():
    """The endpoint is killed in the middle of a stream."""
    requests = Requests()
    call = bidi("Wait")(requests)
    requests.put(b"hello")
    assert next(call) == b"hello"
    say("hanging")
    try:
        next(call)
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE), error
    else:
        raise AssertionError("a message")


def balanced():
    servers = []
    for _ in range(20):
        _, call = unary().with_call(b"", timeout=TIMEOUT)
        servers.append(dict(call.trailing_metadata())["x-server"])
    assert sorted(servers) == ["one"] * 10 + ["two"] * 10, servers
    # Also with a stream under way: that is for one of them, and the calls beside it are for both.
    requests = Requests()
    stream = bidi()(requests, timeout=TIMEOUT)
    requests.put(b"hello")
    assert next(stream) == b"hello"
    servers = {dict(unary().with_call(b"", timeout=TIMEOUT)[1].trailing_metadata())["x-server"] for _ in range(4)}
    assert servers == {"one", "two"}, servers
    requests.end()
    assert list(stream) == []


def goaway():
    """The endpoint goes away gracefully: the stream that is under way ends well."""
    requests = Requests()
    call = bidi()(requests, timeout=TIMEOUT)
    requests.put(b"before")
    assert next(call) == b"before"
    say("streaming")
    sys.stdin.readline()
    for number in range(50):
        message = str(number).encode()
        requests.put(message)
        assert next(call) == message
    requests.end()
    assert list(call) == [] and call.code() == grpc.StatusCode.OK


def slow_upload():
    """An upload that takes longer than a stream may be idle, after the response's head has come."""
    def pieces():
        for _ in range(15):
            yield b"x" * 100
            time.sleep(0.2)

    call = channel.stream_unary("/test.Echo/ClientStream").with_call
    response, call = call(pieces(), timeout=TIMEOUT)
    assert response == b"15 1500", response


globals()[SCENARIO]()
# A thread may still wait for requests to send.
os._exit(0)
