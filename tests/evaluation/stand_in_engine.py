"""A server that answers in the form of vLLM's: the number of tokens that was asked for, all of them alike.

FAULT in the environment: "start": it does not; "answer": it fails on a question.
"""

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

FAULT = os.environ.get("FAULT")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port")
    options, _ = parser.parse_known_args()
    if FAULT == "start":
        print("(Core pid=7) WARNING ValueError: no tokenizer to warm up")
        print("(Worker pid=8) ERROR ValueError: Available memory is less than desired")
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def do_POST(self):
            if FAULT == "answer":
                print("(Worker pid=8) ERROR RuntimeError: Unsupported head_dim=16", flush=True)
                self.send_error(500)
                return
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = question["max_tokens"]
            choice = {"token_ids": [7] * number, "logprobs": {"token_logprobs": [-1.0] * number}}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [choice]}).encode())

    HTTPServer(("127.0.0.1", int(options.port)), Handler).serve_forever()


if __name__ == "__main__":
    sys.exit(main())
