// The leaderboard's tables: sorting by a column, filtering by words and kinds, and opening a row's records.
'use strict';

const sections = [...document.querySelectorAll('section.board')];
const filters = document.querySelector('.filters');

// Empty cells stay last, whichever way the others go.
function sortBy(head) {
  const table = head.closest('table');
  const column = [...head.parentElement.children].indexOf(head);
  const before = head.getAttribute('aria-sort');
  const first = head.dataset.first;
  const direction = before ? (before === 'ascending' ? 'descending' : 'ascending') : first;
  for (const other of head.parentElement.children) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', direction);
  const body = table.tBodies[0];
  const value = (row) => {
    const text = row.cells[column].dataset.value;
    if (text === undefined || text === '') return null;
    return head.classList.contains('number') ? Number(text) : text.toLowerCase();
  };
  const sign = direction === 'ascending' ? 1 : -1;
  const rows = [...body.querySelectorAll('tr.row')].map((row) => [value(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  });
  for (const [, row] of rows) {
    const detail = row.nextElementSibling;
    const open = detail && detail.classList.contains('detail') ? detail : null;
    body.append(row);
    if (open) body.append(open);
  }
}

function toggle(row) {
  const button = row.querySelector('.open');
  const open = button.getAttribute('aria-expanded') === 'true';
  button.setAttribute('aria-expanded', String(!open));
  if (open) {
    row.nextElementSibling.remove();
    return;
  }
  const detail = document.createElement('tr');
  detail.className = 'detail';
  const cell = detail.insertCell();
  cell.colSpan = row.cells.length;
  cell.append(document.getElementById(row.dataset.detail).content.cloneNode(true));
  row.after(detail);
}

function filter() {
  const chosen = Object.fromEntries([...filters.querySelectorAll('select')].map((s) => [s.name, s.value]));
  const words = filters.querySelector('input[type=search]').value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  let all = 0;
  for (const section of sections) {
    let here = 0;
    for (const row of section.querySelectorAll('tr.row')) {
      const text = `${section.dataset.text} ${row.textContent}`.toLowerCase();
      const fits =
        (!chosen.task || section.dataset.task === chosen.task) &&
        (!chosen.data || section.dataset.data === chosen.data) &&
        (!chosen.badge || row.dataset.badge === chosen.badge) &&
        words.every((word) => text.includes(word));
      row.hidden = !fits;
      const detail = row.nextElementSibling;
      if (detail && detail.classList.contains('detail')) detail.hidden = !fits;
      here += fits;
      all += 1;
    }
    section.hidden = here === 0;
    shown += here;
  }
  const asked = words.length > 0 || Object.values(chosen).some(Boolean);
  for (const folded of document.querySelectorAll('details.others')) folded.open = asked;
  filters.querySelector('output').textContent = `${shown} of ${all} rows`;
  for (const box of filters.querySelectorAll('input[type=checkbox]')) {
    document.body.classList.toggle(`hide-${box.name}`, !box.checked);
  }
}

for (const section of sections) {
  section.addEventListener('click', (event) => {
    const head = event.target.closest('th');
    if (head && event.target.closest('button')) sortBy(head);
    const row = event.target.closest('tr.row.records');
    if (row && !window.getSelection().toString()) toggle(row);
  });
}
if (filters) {
  filters.hidden = false;
  filters.addEventListener('input', filter);
  filters.addEventListener('reset', () => setTimeout(filter));
  filter();
}
