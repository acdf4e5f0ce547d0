#!/usr/bin/env python3
"""Calls the methods of a running polluxd. One file, standard library only.

usage: rpc.py [-s SOCKET] [-t SECONDS] METHOD [key=value …]
       rpc.py [-s SOCKET] METHOD --json '{"key": value}'
       rpc.py [-s SOCKET] save_config [--with-secrets]
       rpc.py [-s SOCKET] load_config [FILE]

A value is JSON where it parses as such, and text otherwise: num_blocks=100 is a number, name=Ram0 a text,
luns='[{"bdev_name": "Ram0", "lun_id": 0}]' a list. load_config reads standard input when no file is named.
rpc.py METHOD --help describes a method; rpc.py --help lists them when a daemon answers.
"""

import argparse
import json
import os
import socket
import sys


class Refused(Exception):
    """The daemon answered with an error."""


def default_socket():
    if os.geteuid() == 0:
        return "/var/tmp/pollux.sock"
    directory = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(directory, "pollux.sock") if directory else f"/tmp/pollux-{os.geteuid()}.sock"


class Client:
    def __init__(self, path, timeout):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(timeout)
        self.number = 0
        try:
            self.stream.connect(path)
        except OSError as error:
            raise SystemExit(f"rpc.py: no daemon answers at {path}: {error.strerror or error}. Remedy: start one with \"polluxd -r {path}\", or name its socket with -s")

    def call(self, method, params=None):
        self.number += 1
        request = {"jsonrpc": "2.0", "id": self.number, "method": method}
        if params:
            request["params"] = params
        self.stream.sendall(json.dumps(request).encode())
        parts = []
        while True:
            try:
                part = self.stream.recv(1 << 16)
            except socket.timeout:
                raise SystemExit(f"rpc.py: {method}: no answer in time. Remedy: give more time with -t")
            if not part:
                raise SystemExit(f"rpc.py: {method}: the daemon closed the connection")
            parts.append(part)
            # An answer ends with a line's end; only then is it worth parsing.
            if not part.endswith((b"\n", b"}")):
                continue
            try:
                answer = json.loads(b"".join(parts))
                break
            except ValueError:
                continue
        if "error" in answer:
            raise Refused(f"{answer['error'].get('message')} (code {answer['error'].get('code')})")
        return answer.get("result")


def parameters(words):
    params = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise SystemExit(f"rpc.py: {word!r} is not key=value")
        try:
            params[key] = json.loads(text)
        except ValueError:
            params[key] = text
    return params


def save_config(client, with_secrets):
    subsystems = []
    for subsystem in client.call("framework_get_subsystems"):
        name = subsystem["subsystem"]
        params = {"name": name, "include_secrets": True} if with_secrets else {"name": name}
        config = client.call("framework_get_config", params)
        if any(entry["method"] == "iscsi_create_auth_group" for entry in config) and not with_secrets:
            print("rpc.py: auth groups are saved without their secrets; --with-secrets saves them too", file=sys.stderr)
        subsystems.append({"subsystem": name, "config": config})
    print(json.dumps({"subsystems": subsystems}, indent=2))


def load_config(client, file):
    try:
        with (open(file, encoding="utf-8") if file else sys.stdin) as source:
            config = json.load(source)
    except (OSError, ValueError) as error:
        raise SystemExit(f"rpc.py: {file or 'standard input'}: {error}")
    started = "bdev_get_bdevs" in client.call("rpc_get_methods", {"current": True})
    calls = [(part["subsystem"], at, entry) for part in config["subsystems"] for at, entry in enumerate(part.get("config") or [])]
    if not started:
        # Options first, as long as the start-up phase lasts; then everything else.
        early = set(client.call("rpc_get_methods", {"current": True}))
        late = [call for call in calls if call[2]["method"] not in early]
        load(client, [call for call in calls if call[2]["method"] in early])
        client.call("framework_start_init")
        calls = late
    load(client, calls)


def load(client, calls):
    for subsystem, at, entry in calls:
        try:
            client.call(entry["method"], entry.get("params"))
        except Refused as error:
            raise SystemExit(f"rpc.py: subsystem \"{subsystem}\", config[{at}], method \"{entry['method']}\": {error}")


def describe(client, method=None):
    for entry in client.call("rpc.discover")["methods"]:
        if method is None:
            print(f"  {entry['name']:42} {entry['description']}")
        elif entry["name"] == method:
            print(f"{method}: {entry['description']}")
            for parameter in entry["params"]:
                kind = parameter["schema"].get("type", "value")
                kind = "|".join(k for k in kind if k != "null") if isinstance(kind, list) else kind
                print(f"  {parameter['name']:24} {kind:10} {'required' if parameter['required'] else 'optional'}  {parameter['description'] or ''}")
            return
    if method is not None:
        raise SystemExit(f"rpc.py: {method} is not a method of this daemon. Remedy: rpc.py --help lists them")


def main():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    parser.add_argument("-s", "--socket", "--server-addr", default=default_socket())
    parser.add_argument("-t", "--timeout", type=float, default=120)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--with-secrets", action="store_true")
    parser.add_argument("method", nargs="?")
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_intermixed_args()
    if arguments.help or not arguments.method:
        if not arguments.method:
            print(__doc__)
        try:
            describe(Client(arguments.socket, arguments.timeout), arguments.method)
        except SystemExit as error:
            if arguments.method:
                raise
            print(error)
        return 0 if arguments.help else 1
    client = Client(arguments.socket, arguments.timeout)
    try:
        if arguments.method == "save_config":
            save_config(client, arguments.with_secrets)
        elif arguments.method == "load_config":
            load_config(client, arguments.words[0] if arguments.words else None)
        else:
            params = parameters(arguments.words)
            if arguments.json:
                try:
                    params = {**json.loads(arguments.json), **params}
                except (ValueError, TypeError) as error:
                    raise SystemExit(f"rpc.py: --json is not a JSON object: {error}")
            print(json.dumps(client.call(arguments.method, params), indent=2))
    except Refused as error:
        print(f"rpc.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        # The reader has gone (head, less): no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
