"""Style and script of the page, and the list behind the prompt's autocompletion; knows no model."""

from __future__ import annotations

import html
from collections.abc import Sequence

import gradio as gr

DEVICE = "device"
"""Handlers with this concurrency id wait for each other: one job at a time, in a visible queue."""

STYLE = """<style>
.pictures img { image-rendering: pixelated; }
.pictures .grid-wrap { max-height: none; min-height: 0; }
.pictures .grid-wrap img { width: 100%; height: 100%; object-fit: contain; }
.stats { min-height: 2.5em; }
</style>"""

# Attaches the list to the prompt (gradio has no such option), lets a picture be dropped anywhere on
# the page, and makes Ctrl+Enter press the main button of the open tab.
SCRIPT = """() => {
  const attach = () => document.querySelectorAll('.subject input').forEach((input) => {
    if (!input.hasAttribute('list')) input.setAttribute('list', 'known-subjects');
  });
  attach();
  new MutationObserver(attach).observe(document.body, { childList: true, subtree: true });
  const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
  const ownZone = (event) => event.target.closest?.('.upload-zone');
  document.addEventListener('dragover', (event) => {
    if (hasFile(event) && !ownZone(event)) event.preventDefault();
  });
  document.addEventListener('drop', (event) => {
    if (!hasFile(event) || ownZone(event)) return;
    event.preventDefault();
    const button = document.querySelector('.recipe-file');
    const input = button?.parentElement.querySelector('input[type=file]');
    if (!input) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
    [...document.querySelectorAll('button.go')].find((b) => b.offsetParent)?.click();
  });
}"""


def name_list(names: Sequence[str]) -> str:
    """Known prompts or classes as the list that the prompt completes from."""
    options = "".join(f'<option value="{html.escape(name)}"></option>' for name in names)
    return f'<datalist id="known-subjects">{options}</datalist>'


def main_button(label: str) -> gr.Button:
    """The button that starts a tab's work."""
    return gr.Button(label, variant="primary", elem_classes="go", min_width=100)
