"""The page in a real browser: sorting, filtering, opening a row, at several widths, light and dark, without a word on
the console. Needs Chromium (Debian: `apt-get install chromium`); BEIT_MM_CHROMIUM names one that lies elsewhere.
"""

import json
import os
import shutil

import pytest
from test_leaderboard import DVAE, record, start

from beit_mm.benchmark.leaderboard import BASELINE, board
from beit_mm.benchmark.report import whole

CHROMIUM = os.environ.get('BEIT_MM_CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason='no Chromium: apt-get install chromium, or BEIT_MM_CHROMIUM=PATH'),
]
EMBEDDED, ADE20K = 'Semantic segmentation on EmbeddedScenes', 'Semantic segmentation on ADE20K'


@pytest.fixture(scope='module')
def records():
    scratch = [record(v, BASELINE, seed) for seed, v in enumerate((50.0, 52.0, 54.0))]
    tuned = [record(v, seed=seed, stages=start(DVAE)) for seed, v in enumerate((55.0, 55.0, 61.0))]
    real = dict(dataset='ADE20K', embedded=False, num_images=2000, preset='beit base')
    shares = {'SETR-PUP, fine-tune': 44.0, 'SETR-PUP, from scratch': 30.5, 'UPerNet, fine-tune': 45.25}
    return [*scratch, *tuned, *(record(value, protocol, **real) for protocol, value in shares.items())]


@pytest.fixture(scope='module')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api')
    flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking'
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags.split())
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, records, tmp_path):
    """A function that opens the page; nothing may be said on its console, and nothing asked of a network."""
    path, said, contexts = tmp_path / 'page.html', [], []
    path.write_text(whole(board(records), 'A page', 'Made for a test.'))

    def go(**wishes):
        contexts.append(browser.new_context(**wishes))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on('console', lambda message: said.append(message.text))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.on('request', lambda request: request.url.startswith(('file:', 'data:')) or said.append(request.url))
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert said == []


def table(page, heading):
    return page.locator('section.board').filter(has=page.locator('h3', has_text=heading))


def column(page, heading, name):
    """What the visible rows of a table have in the column of that name."""
    heads = table(page, heading).locator('thead tr:last-child th').all_inner_texts()
    index = [head.strip() for head in heads].index(name)
    return [row.locator('td').nth(index).inner_text() for row in table(page, heading).locator('tr.row:visible').all()]


def test_sorting(opened):
    page = opened()
    page.fill('input[type=search]', 'ADE20K')
    head = table(page, ADE20K).locator('th.measured', has_text='mIoU %')
    head.locator('button').click()
    assert head.get_attribute('aria-sort') == 'descending'
    values = column(page, ADE20K, 'mIoU %')  # the first column of that name: what was measured
    assert values[:3] == ['45.2', '44.0', '30.5']
    assert set(values[3:]) == {''}
    head.locator('button').click()
    assert head.get_attribute('aria-sort') == 'ascending'
    assert column(page, ADE20K, 'mIoU %')[:4] == ['30.5', '44.0', '45.2', '']  # what is empty stays last
    table(page, ADE20K).get_by_role('button', name='protocol').click()
    protocols = column(page, ADE20K, 'protocol')
    assert protocols == sorted(protocols, key=str.lower)
    assert head.get_attribute('aria-sort') is None
    theirs = table(page, ADE20K).locator('th.reference', has_text='mIoU %')
    theirs.locator('button').click()
    assert column(page, ADE20K, 'model')[0] == 'beit_plus large'  # 58.4


def test_filtering(opened):
    page = opened()
    rows, said = page.locator('tr.row:visible'), page.locator('.filters output')
    everything = said.inner_text()
    count = int(everything.split()[2])
    assert everything == f'{count} of {count} rows'
    page.fill('input[type=search]', 'scratch setr-pup')
    assert rows.count() == 1
    assert said.inner_text() == f'1 of {count} rows'
    assert table(page, EMBEDDED).is_hidden()
    page.fill('input[type=search]', 'no such row')
    assert rows.count() == 0
    page.get_by_role('button', name='reset').click()
    page.wait_for_function(f'document.querySelector(".filters output").textContent === "{everything}"')
    page.select_option('select[name=data]', 'embedded')
    assert rows.count() == 2
    page.select_option('select[name=data]', '')
    page.select_option('select[name=badge]', 'trained here')
    assert rows.count() == 5
    page.select_option('select[name=badge]', '')
    page.select_option('select[name=task]', 'classification')
    assert page.locator('details.others').get_attribute('open') is not None
    assert rows.count() == count - table(page, ADE20K).locator('tr.row').count() - 2


def test_columns_of_cost_and_of_others(opened):
    page = opened()
    assert page.locator('th.cost:visible').count() == 0
    page.check('input[name=cost]')
    assert column(page, EMBEDDED, 'with all before') == ['4.5 min', '']
    assert column(page, EMBEDDED, 'training') == ['41 s', '41 s']
    assert page.locator('th.reference:visible').count() > 0
    page.uncheck('input[name=reference]')
    assert page.locator('th.reference:visible').count() == 0


def test_opening_a_row(opened, records):
    page = opened()
    row = table(page, EMBEDDED).locator('tr.row').first
    row.locator('td').nth(2).click()
    detail = table(page, EMBEDDED).locator('tr.detail')
    assert row.locator('.open').get_attribute('aria-expanded') == 'true'
    assert detail.locator('summary').count() == 3
    shown = records[3:6][0]
    detail.locator('summary').first.click()
    assert json.loads(detail.locator('pre').first.inner_text()) == json.loads(shown.text)
    table(page, EMBEDDED).locator('th.measured', has_text='mIoU').locator('button').click()
    table(page, EMBEDDED).locator('th.measured', has_text='mIoU').locator('button').click()  # ascending: it is last
    assert column(page, EMBEDDED, 'protocol') == ['from scratch', 'fine-tune']
    assert detail.evaluate('detail => detail.previousElementSibling.cells[2].innerText') == 'fine-tune'
    row = table(page, EMBEDDED).locator('tr.row').nth(1)
    row.locator('.open').focus()
    page.keyboard.press('Enter')
    assert detail.count() == 0
    assert row.locator('.open').get_attribute('aria-expanded') == 'false'


@pytest.mark.parametrize('width', [360, 820, 1440])
def test_nothing_sticks_out(opened, width):
    page = opened(viewport=dict(width=width, height=800))
    page.check('input[name=cost]')
    page.select_option('select[name=data]', 'real')
    page.locator('tr.row.records:visible').first.locator('td').nth(2).click()
    assert page.evaluate('document.documentElement.scrollWidth') <= width


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_stands_out(opened, scheme):
    """Contrast of text on the page of at least 4.5, as WCAG asks, dimmed text and badges included."""
    page = opened(color_scheme=scheme)
    for selector in ('h1', '.note', 'td.reference', '.badge.trained', '.badge.others', '.better', 'nav a', '.kind'):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


CONTRAST = """element => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = colour => colour.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element;
  let ground = [0, 0, 0, 0];
  while (behind && (ground[3] === 0)) {
    ground = parse(getComputedStyle(behind).backgroundColor);
    if (ground.length === 3) ground.push(1);
    behind = behind.parentElement;
  }
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""
