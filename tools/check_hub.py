"""Lets Foveate fetch a model from a hub on this machine, then lets the hub's own Python client find it in the cache.

    python tools/check_hub.py path/to/foveate MODEL_FOLDER

Plays the hub over plain HTTP and over TLS (a certificate of its own, made with `openssl`), redirects weights as the real
one does, breaks the first transfer off, and demands: the model loads, `huggingface_hub` and `transformers` find it
offline, and what the client's cache holds Foveate finds offline.
"""

import hashlib
import http.server
import json
import os
import pathlib
import ssl
import subprocess
import sys
import tempfile
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files = {}
    broken = set()
    asked = []

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        Hub.asked.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
        if path.startswith("/api/models/org/tiny"):
            siblings = []
            for name, content in self.files.items():
                entry = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
                if name.endswith(".safetensors"):
                    entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
                siblings.append(entry)
            self.reply(200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/storage/"):
            content = self.files[path.rsplit("/", 1)[1]]
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if path not in self.broken:
                self.broken.add(path)
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            else:
                self.wfile.write(content[start:])
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/") and path.rsplit("/", 1)[1] in self.files:
            name = path.rsplit("/", 1)[1]
            if name.endswith(".safetensors"):
                self.reply(302, Location=f"/storage/{name}")
            else:
                self.reply(200, self.files[name])
        else:
            self.reply(404, X_Error_Code="RepoNotFound")


def serve(context=None):
    """A hub in a thread; gives its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def inspect(binary, **settings):
    """`foveate model inspect org/tiny` under these environment variables."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    words = [binary, "model", "inspect", "org/tiny"]
    return subprocess.run(words, env=plain | settings, capture_output=True, text=True)


def main():
    binary, folder = (pathlib.Path(word).resolve() for word in sys.argv[1:3])
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with tempfile.TemporaryDirectory() as here:
        here = pathlib.Path(here)
        certificate, key = here / "cert.pem", here / "key.pem"
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        make += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"]
        subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        ports = {"http": serve(), "https": serve(context)}
        for scheme, port in ports.items():
            Hub.broken.clear()
            Hub.asked.clear()
            root = here / scheme
            settings = {"HF_HOME": str(root), "HF_ENDPOINT": f"{scheme}://localhost:{port}", "HF_TOKEN": "key"}
            if scheme == "https":
                strange = inspect(binary, **settings)
                assert strange.returncode == 2 and "ertificate" in strange.stderr, strange.stderr
                settings["SSL_CERT_FILE"] = str(certificate)
            done = inspect(binary, **settings)
            assert done.returncode == 0, done.stdout + done.stderr
            assert any(span for _, span, _ in Hub.asked), "the broken transfer went on where it was"
            assert inspect(binary, HF_HOME=str(root), HF_HUB_OFFLINE="1").returncode == 0
            find = (
                "from huggingface_hub import snapshot_download; import transformers; "
                "folder = snapshot_download('org/tiny', local_files_only=True); "
                "transformers.AutoConfig.from_pretrained('org/tiny'); print(folder)"
            )
            env = os.environ | {"HF_HOME": str(root), "HF_HUB_OFFLINE": "1"}
            found = subprocess.run([sys.executable, "-c", find], env=env, capture_output=True, text=True)
            assert found.returncode == 0 and COMMIT in found.stdout, found.stderr
            print(f"{scheme}: fetched, resumed, found by huggingface_hub and transformers")
        refused = inspect(binary, HF_HOME=str(here / "none"), HF_ENDPOINT=f"http://localhost:{ports['http']}/nothing")
        assert refused.returncode == 2 and "HF_TOKEN" in refused.stderr, refused.stderr
        print(f"refused: {refused.stderr.strip()}")


if __name__ == "__main__":
    main()
