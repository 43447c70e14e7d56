"""A gRPC server on a port of its own that says how it is. It prints its port, and "asked SERVICE" for each check.

A line on its standard input is a service and its new status, as in "users.v1.Users 1"; "-" is the server as a whole, which
is SERVING (1) at first. Of a service that has no status it knows nothing (NOT_FOUND). The messages are written by hand.
(A file called grpc_health.py would be taken for the package of that name, which grpc imports when it finds it.)
"""

import sys
from concurrent import futures

import grpc

statuses = {"": 1}


def say(text):
    print(text, flush=True)


def check(request, context):
    service = ""
    if request:
        assert request[0] == 0x0A and request[1] == len(request) - 2, request
        service = request[2:].decode()
    say(f"asked {service or '-'} {dict(context.invocation_metadata()).get('user-agent')}")
    if service not in statuses:
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return bytes((0x08, statuses[service]))


HANDLERS = {"Check": grpc.unary_unary_rpc_method_handler(check)}

server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", HANDLERS),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
say(f"port {port}")
for line in sys.stdin:
    name, status = line.split()
    statuses["" if name == "-" else name] = int(status)
