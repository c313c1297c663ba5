"""A server with an OpenAI-compatible URL that answers SLOTS requests at a time, each SECONDS after it has begun with it:

    python benchmarks/slow_server.py SLOTS SECONDS        # prints its port

An answer is the last token of the prompt, in digits, so that who asks can tell whose answer it is. What comes while all slots are
taken waits its turn.
"""

import asyncio
import json
import sys
from typing import Any


async def serve(slots: int, seconds: float) -> None:
    """Prints its port and answers until it is ended."""
    free = asyncio.Semaphore(slots)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            length = 0
            while (line := await reader.readline()).strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            asked = json.loads(await reader.readexactly(length)) if length else {}
            if head.startswith(b"GET"):
                reply: dict[str, Any] = {"object": "list", "data": [{"id": "model", "object": "model"}]}
            else:
                async with free:
                    await asyncio.sleep(seconds)
                choice = {"index": 0, "text": f"{asked['prompt'][-1]}", "finish_reason": "stop"}
                reply = {"id": "1", "object": "text_completion", "created": 0, "model": "model", "choices": [choice]}
                reply["usage"] = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": 1, "total_tokens": 1}
            body = json.dumps(reply).encode()
            first = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            writer.write(first + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
