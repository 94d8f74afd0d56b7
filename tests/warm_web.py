"""A web app over warm workers, for a server of several processes."""

import os

import warm_apps # noqa: F401 (its apps are declared by importing it)
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from cjm_workflow_sessions import open_store, warm


def make_app():
    client = warm.async_client(open_store(os.environ["WARM_STORE"]), owner="ann")

    async def run(request):
        try: return JSONResponse(await client.run(await request.json()) | {"web": os.getpid()})
        except warm.WarmError as e: return JSONResponse({"code": e.code, "error": str(e)}, e.status)

    async def ready(request): return JSONResponse({})

    return Starlette(routes=[Route("/run", run, methods=["POST"]), Route("/ready", ready)])
