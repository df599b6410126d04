"""The web page in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from support.bundles import item_vectors, make_bundle
from support.engines import hosted
from support.servers import serving

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Item
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")
from playwright.sync_api import Browser, Page, expect
from support.browser import CHROMIUM, MISSING, Visitor

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script> \u202e\' & ' + "W" * 120
ROWS = ".items tbody tr"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A server with sixty items, one of which has a title with markup."""
    path = make_bundle(tmp_path_factory.mktemp("shop") / "bundle", codebooks=(4, 5))
    update_index(Bundle.open(path), [Item("hostile", HOSTILE)], [], item_vectors)
    return Bundle.open(path)


@pytest.fixture(scope="module")
def base(shop: Bundle) -> Iterator[str]:
    with serving(create_app(shop, hosted(TorchEngine.open(shop)), Settings())) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def visitor(browser: Browser, base: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, base, viewport={"width": 1280, "height": 800})
    yield visitor
    visitor.context.close()
    assert visitor.complaints == []


def address(**state: Any) -> str:
    return "#" + urlencode(state, doseq=True, quote_via=quote)


def shown(page: Page, task: str) -> list[tuple[str, ...]]:
    """Return rank, title, id, score and source of every row of a list, as the page shows them."""
    cells = "['.rank', '.title', '.id', '.score', '.source'].map(part => row.querySelector(part).innerText)"
    rows = page.locator(f"#{task} {ROWS}").evaluate_all(f"rows => rows.map(row => {cells})")
    return [tuple(row) for row in rows]


def answered(base: str, task: str, body: dict[str, Any]) -> list[tuple[str, ...]]:
    items = httpx.post(f"{base}v1/{task}", json=body).json()["items"]
    return [
        (str(i["rank"]), i["title"], i["item_id"], f"{i['score']:.2f}".replace("-", "−"), i["source"])
        for i in items
    ]


def chips(page: Page) -> list[str]:
    return page.locator(".chip > span:first-child").all_inner_texts()


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the element has the focus, and check that the focus is visible."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            drawn = page.evaluate(
                "() => [document.activeElement, document.activeElement.parentElement, "
                "document.activeElement.nextElementSibling].filter(Boolean)"
                ".some(each => getComputedStyle(each).outlineStyle === 'solid')"
            )
            assert drawn, f"{selector} does not show that it has the focus"
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_all_of_it_by_keyboard(visitor: Visitor, base: str) -> None:
    page = visitor.open()
    field, options = page.locator("#history"), page.locator("#titles [role=option]")
    tab_to(page, "#history")
    page.keyboard.type("silent")
    expect(options).to_have_count(8)
    expect(field).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    second = options.nth(1)
    expect(second).to_have_attribute("aria-selected", "true")
    expect(field).to_have_attribute("aria-activedescendant", str(second.get_attribute("id")))
    title = second.locator("span").first.inner_text()
    page.keyboard.press("Enter")
    assert chips(page) == [title]
    page.keyboard.type("golden")
    expect(options).to_have_count(8)
    page.keyboard.press("Escape")
    expect(page.locator("#titles")).to_be_hidden()
    assert field.input_value() == "golden"
    page.keyboard.press("Escape")
    assert field.input_value() == ""
    for text, expected in (("winter machine 25", "Winter Machine 25"), ("lost garden 2", "Lost Garden 2")):
        page.keyboard.type(text)
        expect(options.first).to_contain_text(expected)
        page.keyboard.press("Enter")
    assert chips(page) == [title, "Winter Machine 25", "Lost Garden 2"]
    page.keyboard.press("Backspace")
    assert chips(page) == [title, "Winter Machine 25"]

    tab_to(page, "#query")
    page.keyboard.type("silent river")
    page.keyboard.press("Enter")
    visitor.settled(page)
    search, recommend = page.locator("#search"), page.locator("#recommend")
    history = page.evaluate("new URLSearchParams(location.hash.slice(1)).getAll('item')")
    body = {"history": [{"item_id": each} for each in history]}
    assert shown(page, "search") == answered(base, "search", body | {"query": "silent river"})
    assert shown(page, "recommend") == answered(base, "recommend", body)
    left, right = search.bounding_box(), recommend.bounding_box()
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]

    for name in ("show", "explain", "exclude"):
        tab_to(page, f"#{name}, [name={name}]")
    tab_to(page, "#search .title")
    first = page.locator("#search .title").first.inner_text()
    page.keyboard.press("Enter")
    assert chips(page)[2] == first
    expect(page.locator(".chip .by")).to_have_text("by “silent river”")  # a search found it
    visitor.settled(page)


def test_items_of_the_history_are_left_out_where_the_page_says_so(visitor: Visitor, base: str) -> None:
    page = visitor.open(address(item=[f"item-{k}" for k in range(5, 60)], query="river", limit=60))
    body = {"history": [{"item_id": f"item-{k}"} for k in range(5, 60)], "limit": 60}
    counts = {"of recommendations": (60, 6), "of both lists": (6, 6), "of neither list": (60, 60)}
    sent: dict[str, dict[str, bool]] = {
        "of recommendations": {},
        "of both lists": {"exclude_history": True},
        "of neither list": {"exclude_history": False},
    }
    for choice, (searched, recommended) in counts.items():
        page.select_option("#exclude", choice)
        expect(page.locator(f"#search {ROWS}")).to_have_count(searched)
        expect(page.locator(f"#recommend {ROWS}")).to_have_count(recommended)
        visitor.settled(page)
        assert shown(page, "recommend") == answered(base, "recommend", body | sent[choice])


def test_explanations_name_the_items_of_the_history(visitor: Visitor, base: str) -> None:
    page = visitor.open(address(item=["item-3", "item-14", "item-50"]))
    assert page.locator(".explanation").count() == 0
    page.check("#explain")
    expect(page.locator("#recommend .explanation tbody tr")).to_have_count(3)
    body = {"history": [{"item_id": f"item-{k}"} for k in (3, 14, 50)], "explain": True}
    answer = httpx.post(f"{base}v1/recommend", json=body).json()
    titles = {"item-3": "Electric Voyage 3", "item-14": "Silent Señorita 14", "item-50": "Golden Garden 50"}
    rows = page.locator("#recommend .explanation tbody tr").all()
    effects = [(row.locator("th").inner_text(), row.locator(".score").inner_text()) for row in rows]
    assert effects == [
        (titles[e["item_id"]], f"{e['effect']:+.2f}".replace("-", "−"))
        for e in answer["explanation"]["history"]
    ]
    expect(page.locator("#recommend .timings dt")).to_have_text(list(answer["timings_ms"]))


def test_popularity_is_labelled_and_short_lists_say_why(visitor: Visitor) -> None:
    narrow = json.dumps({"year": {"gte": 2000, "lt": 2003}})
    page = visitor.open(address(fallback="popularity", filter=narrow, show="recommend"))
    assert [row[4] for row in shown(page, "recommend")] == ["popularity"] * 3
    notes = page.locator("#recommend .notes")
    expect(notes).to_contain_text("Popular items instead of the model's")
    expect(notes).to_contain_text("3 of the catalogue's 61 items are left by filter")
    expect(page.locator("#search")).to_be_hidden()
    page.fill("#filter", "{year")
    expect(page.locator("#filter")).to_have_attribute("aria-invalid", "true")
    page.fill("#filter", "")
    expect(page.locator("#filter")).to_have_attribute("aria-invalid", "false")
    expect(page.locator(f"#recommend {ROWS}")).to_have_count(10)


def test_problems_are_shown_as_the_server_says_them(visitor: Visitor) -> None:
    page = visitor.open(address(item="item-1", limit=1000))
    problem = page.locator("#recommend [role=alert]")
    expect(problem).to_contain_text("The request is not valid")
    expect(problem).to_contain_text("limit: at most 100")
    expect(problem).to_contain_text("status 422 · request ")
    page.fill("#limit", "")
    page.fill("#filter", '{"colour": "red"}')
    expect(problem).to_contain_text("filter: ")
    expect(problem).to_contain_text("categories, year")
    page.fill("#filter", "")
    expect(page.locator(f"#recommend {ROWS}")).to_have_count(10)
    visitor.context.set_offline(True)
    page.click("button[type=submit]")
    expect(problem).to_contain_text("The server did not answer")
    page.locator("#history").press_sequentially("silent")
    expect(page.locator("#titles")).to_contain_text("The server did not answer")
    assert all(each.startswith("error: Failed to load resource") for each in visitor.complaints)
    visitor.complaints.clear()  # lines of the browser itself about 422 and the lost connection


def test_a_hostile_title_is_a_text(visitor: Visitor) -> None:
    page = visitor.open(address(item="hostile", limit=100, explain=1, query="river", exclude=0))
    page.locator("#history").press_sequentially("img src")
    expect(page.locator("#titles [role=option]").first).to_contain_text("<img src=x")
    page.keyboard.press("Enter")
    visitor.settled(page)
    assert HOSTILE in page.locator("#recommend .title").all_text_contents()
    assert page.locator(".chip span").all_text_contents() == [HOSTILE, HOSTILE]
    assert page.locator(".explanation th").first.text_content() == HOSTILE
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    with pytest.raises(Exception, match="TrustedHTML"):  # no other text could become markup, either
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    visitor.complaints[:] = [each for each in visitor.complaints if "TrustedHTML" not in each]


def test_an_address_restores_what_was_seen(visitor: Visitor) -> None:
    page = visitor.open()
    page.locator("#history").press_sequentially("crimson river")
    expect(page.locator("#titles [role=option]").first).to_contain_text("Crimson River 40")
    page.keyboard.press("Enter")
    page.fill("#query", "señorita & ‘golden’ #1")
    expect(page.locator(f"#search {ROWS}")).to_have_count(10)
    page.locator("#search .title").nth(2).click()
    page.select_option("#exclude", "of both lists")
    page.check("#explain")
    page.click("#options summary")
    page.fill("#limit", "4")
    page.fill("#beam", "60")
    page.fill("#filter", '{"year": {"gte": 1960}}')
    expect(page).to_have_url(re.compile("filter="))
    visitor.settled(page)
    state = "[...document.querySelectorAll('input, select, textarea')].map(e => e.type === 'radio' || "
    state += "e.type === 'checkbox' ? e.checked : e.value)"
    other = visitor.open(page.url.removeprefix(visitor.base))
    expect(other.locator(".chip").first).to_contain_text("Crimson River 40")
    assert other.evaluate(state) == page.evaluate(state)
    assert chips(other) == chips(page)
    for task in ("search", "recommend"):
        assert shown(other, task) == shown(page, task)
    other.evaluate("location.hash = 'item=no-such-item&item=item-2'")
    expect(other.locator(".chip.unknown")).to_contain_text("no-such-item")
    assert other.locator("#limit").input_value() == ""


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_nothing_moves_while_it_loads_and_nothing_is_cut_off(
    browser: Browser, base: str, width: int, height: int
) -> None:
    visitor = Visitor(browser, base, viewport={"width": width, "height": height}, has_touch=width < 700)
    visitor.context.add_init_script(
        "window.moved = 0; new PerformanceObserver(list => list.getEntries().forEach(each => "
        "{ window.moved += each.value })).observe({type: 'layout-shift', buffered: true})"
    )
    for path in ("", address(item=["item-3", "hostile", "item-9"], query="river", explain=1)):
        page = visitor.open(path)
        assert page.locator(f"#recommend {ROWS}").count() == 10
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        assert page.evaluate("window.moved") < 0.05
        assert page.evaluate("document.documentElement.scrollWidth") == width
    upper, lower = page.locator("#search").bounding_box(), page.locator("#recommend").bounding_box()
    assert upper is not None
    assert lower is not None
    assert (lower["y"] >= upper["y"] + upper["height"]) is (width < 700)
    visitor.context.close()
    assert visitor.complaints == []


def test_the_curl_command_gives_the_same_answer(visitor: Visitor) -> None:
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visitor.open(address(item="item-3", query='it\'s `$HOME` \\ "quoted"', limit=5, show="search"))
    page.click("#search .curl summary")
    page.click("#search .curl button")
    expect(page.locator("#search .curl button")).to_have_text("Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    asked = subprocess.run(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert [item["title"] for item in json.loads(asked.stdout)["items"]] == [
        row[1] for row in shown(page, "search")
    ]


def test_the_model_card_tells_what_is_served(visitor: Visitor, shop: Bundle) -> None:
    page = visitor.open()
    card = page.locator("#card dl").inner_text()
    for text in (shop.info.bundle_id, "v2", "61", "semantic, 4 × 5", "none", "not measured"):
        assert text in card
    expect(page.locator("#serving")).to_have_text(f"{shop.info.bundle_id} · index v2 · 61 items")


def test_the_page_follows_the_settings_of_the_system(visitor: Visitor) -> None:
    page = visitor.open()

    def style(selector: str, name: str) -> str:
        return str(page.locator(selector).first.evaluate(f"each => getComputedStyle(each).{name}"))

    page.emulate_media(color_scheme="light", reduced_motion="no-preference")
    assert style("body", "backgroundColor") == "rgb(255, 255, 255)"
    assert style(".pane .body", "transitionDuration") != "0s"
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert style("body", "backgroundColor") == "rgb(20, 22, 26)"
    assert style(".pane .body", "transitionDuration") == "0s"


def test_a_key_is_asked_for_and_kept_in_this_tab_only(
    browser: Browser, bundle: Bundle, engine: TorchEngine
) -> None:
    with serving(create_app(bundle, hosted(engine), Settings(api_keys="s3cret"))) as port:
        visitor = Visitor(browser, f"http://127.0.0.1:{port}/")
        page = visitor.open(address(item="item-3", query="river"))
        expect(page.locator("#recommend .body")).to_have_text("Enter the API key to ask.")
        page.fill("#key", "s3cret")
        page.keyboard.press("Tab")
        expect(page.locator(f"#search {ROWS}")).to_have_count(10)
        expect(page.locator(".chip")).to_contain_text("Electric Voyage 3")
        page.locator("#history").press_sequentially("silent")
        expect(page.locator("#titles [role=option]")).to_have_count(8)
        page.click("#search .curl summary")
        command = page.locator("#search .curl pre").inner_text()
        assert "s3cret" not in command + page.url
        assert "$GEMS_API_KEY" in command
        page.reload()
        expect(page.locator(f"#search {ROWS}")).to_have_count(10)
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        expect(visitor.open().locator("#key")).to_have_value("")
        # The lookup of the items in the address is answered with 401.
        refused = [each for each in visitor.complaints if "401" not in each]
        visitor.context.close()
        assert refused == []
