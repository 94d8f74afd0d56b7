"""What many tests share: a browser, and a PostgreSQL server."""

import re

import pytest

from postgres_support import throwaway
from support import chromium, watch

ELSEWHERE = re.compile(r"^(?!http://127\.0\.0\.1:|data:|blob:)") # Every address but those of servers of this machine


@pytest.fixture(scope="session")
def browser():
    with chromium() as browser: yield browser


@pytest.fixture
def visitor(browser):
    "Make browser contexts, each a person with cookies of their own and no way to other machines; every page must end without trouble."
    contexts, pages = [], []

    def new_context(**kwargs):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | kwargs))
        context.route(ELSEWHERE, lambda route: route.abort())
        context.on("page", lambda page: pages.append(watch(page)))
        contexts.append(context)
        return context

    yield new_context
    trouble = [t for page in pages for t in page.trouble]
    for context in contexts: context.close()
    assert not trouble


@pytest.fixture(scope="session")
def postgres():
    "A PostgreSQL server of our own."
    with throwaway() as cluster: yield cluster


SLOW = {f"test_{name}" for name in (
    "gate imports store_races jobs_crash job_servers jobs_procrastinate job_hub job_news migrate migrate_jobs two_machines million search operations demo changes cli postgres "
    "warm warm_local warm_faults warm_registry").split()} # They start, kill or fill something, or look at files alone


def pytest_collection_modifyitems(items):
    "Mark what needs a browser and what takes long, so that `-m 'not browser and not slow'` leaves it out."
    for item in items:
        if {"browser", "visitor"} & set(item.fixturenames): item.add_marker(pytest.mark.browser)
        if item.module.__name__ in SLOW: item.add_marker(pytest.mark.slow)
