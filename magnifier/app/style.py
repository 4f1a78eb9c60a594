"How the page looks, and what happens in the browser before anything is sent"
from magnifier.app.upload import MAX_BYTES

__all__ = ['STYLE', 'DROP_SCRIPT', 'CARDS_SCRIPT', 'HITS_SCRIPT', 'WHY_SCRIPT']

STYLE = '''
.gradio-container { max-width: 1400px !important; --body-text-color-subdued: color-mix(in srgb, var(--body-text-color) 78%, transparent);
  --block-info-text-color: var(--body-text-color-subdued); --block-label-text-color: var(--body-text-color); --block-title-text-color: var(--body-text-color); }
.gradio-container .column, .gradio-container .tabitem > * { gap: .7rem; }
.mg-small { font-size: .85rem; margin: .15rem 0 !important; color: color-mix(in srgb, var(--body-text-color) 82%, transparent); }
.mg-note, .mg-alert { margin: .15rem 0 !important; font-weight: 600; }
.mg-alert { border-left: 5px solid #b3261e; padding: .5rem .75rem; background: color-mix(in srgb, #b3261e 12%, transparent); }
.mg-alert::before { content: "! "; font-weight: 800; }
.mg-drop { display: flex; gap: .75rem; align-items: flex-start; border: 2px dashed var(--border-color-primary); border-radius: 8px; padding: .75rem; }
.mg-drop.mg-over { border-style: solid; border-color: var(--color-accent); }
.mg-drop > div { flex: 1 1 0; min-width: 0; }
.mg-query { margin: 0; flex: 0 0 auto; text-align: center; max-width: 8.5rem; }
.mg-query img { height: 12rem; max-width: 8.5rem; object-fit: contain; border-radius: 4px; }
.mg-query figcaption { font-size: .8rem; overflow-wrap: anywhere; }
.mg-file { display: block; cursor: pointer; }
.mg-file input { display: block; width: 100%; max-width: 9rem; margin-top: .5rem; font-size: .85rem; color: transparent; }
.mg-forget { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .25rem .6rem !important; margin-top: .35rem; cursor: pointer; font-size: .85rem !important; font-weight: 400 !important; }
.mg-cards, .mg-strip, .mg-legend { list-style: none !important; padding: 0 !important; margin: .5rem 0 !important; display: grid; gap: .5rem; }
.mg-cards { grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); }
.mg-little { grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr)); gap: .35rem; }
.mg-little .mg-card span:not(.mg-none) { font-size: .72rem; }
.mg-strip { grid-template-columns: repeat(auto-fill, minmax(4.6rem, 1fr)); }
.mg-cards li, .mg-strip li, .mg-legend li { margin: 0 !important; padding: 0; list-style: none !important; display: flex; }
.mg-card { flex: 1; display: flex; flex-direction: column; align-items: center; gap: .1rem; padding: .4rem .3rem; cursor: pointer; text-align: center; line-height: 1.25; font-weight: 400 !important;
  background: var(--background-fill-secondary); border: 2px solid transparent; border-radius: 8px; color: var(--body-text-color); }
.mg-card:hover { border-color: var(--border-color-accent); }
.mg-card:focus-visible, .mg-forget:focus-visible, .mg-file input:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.mg-card[aria-pressed=true] { border: 2px solid var(--body-text-color); box-shadow: 0 0 0 2px var(--color-accent); }
.mg-card img, .mg-card .mg-none { width: 100%; aspect-ratio: 1/2; object-fit: contain; border-radius: 4px; margin: 0; }
.mg-none { display: flex; align-items: center; justify-content: center; font-size: .75rem; border: 1px dotted var(--border-color-primary); }
.mg-card span:not(.mg-none) { font-size: .8rem; font-weight: 400; }
.mg-card b { font-size: .95rem; }
.mg-strip .mg-card span:not(.mg-none) { font-size: .7rem; }
.mg-why { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1.25rem; align-items: start; }
.mg-four { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .5rem; }
.mg-four figure { margin: 0; text-align: center; font-size: .8rem; line-height: 1.2; }
.mg-four img { width: 100%; aspect-ratio: 1/2; object-fit: contain; border-radius: 4px; margin: 0 0 .2rem; }
.mg-table { width: 100%; border-collapse: collapse; font-size: .85rem; margin: 0 !important; border: 0 !important; }
.mg-table caption { text-align: left; font-size: .85rem; padding-bottom: .35rem; }
.mg-table tr, .mg-table thead { border: 0 !important; background: none !important; }
.mg-table tbody tr { border-top: 1px solid var(--border-color-primary) !important; }
.mg-table th, .mg-table td { text-align: left !important; padding: .2rem .5rem .2rem 0 !important; border: 0 !important; font-weight: 400; vertical-align: middle; }
.mg-table thead th { font-weight: 600; }
.mg-table tbody th { white-space: nowrap; }
.mg-table td { width: 38%; white-space: nowrap; }
.mg-bar { display: inline-block; width: calc(100% - 3.6rem); height: .7rem; vertical-align: middle; background: var(--background-fill-secondary); }
.mg-bar i { display: block; height: 100%; background: #3b6ea5; }
.mg-bar i.mg-adds { background: #b06a00; }
.mg-bar i.mg-minus { background: repeating-linear-gradient(45deg, #8a8a8a 0 3px, transparent 3px 6px); }
.mg-number { display: inline-block; width: 3rem; text-align: right; font-variant-numeric: tabular-nums; }
.mg-dot { display: inline-block; width: .8rem; height: .8rem; border: 1px solid #333; border-radius: 3px; margin-right: .4rem; vertical-align: -1px; }
.mg-legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .85rem; }
.mg-legend li { align-items: center; }
.mg-groups { display: grid; gap: 0 1.5rem; }
.mg-groups.mg-identity { grid-template-columns: repeat(auto-fill, minmax(min(100%, 33rem), 1fr)); }
.mg-groups h3 { margin: .6rem 0 0 !important; font-size: 1rem; }
.mg-groups h3 small { font-weight: 400; }
#mg-why:not(:has(section, p)) { display: none; }
#mg-why section { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .75rem; }
#mg-why h3 { margin: 0 !important; font-size: 1.05rem; }
#mg-why p { margin: .25rem 0 .6rem !important; }
@media (max-width: 900px) { .mg-why { grid-template-columns: 1fr; } }
@media (max-width: 480px) {
  .gradio-container { padding: .25rem !important; }
  .mg-cards { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .mg-strip { display: flex; overflow-x: auto; }
  .mg-strip li { flex: 0 0 4.8rem; }
  .mg-four { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .3rem; }
  .mg-four figure { font-size: .72rem; }
  .mg-bar { width: calc(100% - 3.2rem); }
  .mg-card span:not(.mg-none) { font-size: .72rem; }
}
'''

# A picture goes as text inside a message, so that no file of it ever lies on the server
DROP_SCRIPT = f'''
const send = file => {{
  if (!file) return;
  if (file.size > {MAX_BYTES}) {{ trigger('upload', {{size: file.size}}); return; }}
  const reader = new FileReader();
  reader.onload = () => trigger('upload', {{size: file.size, data: reader.result}});
  reader.onerror = () => trigger('upload', {{size: 0}});
  reader.readAsDataURL(file);
}};
const over = (e, on) => {{ const zone = element.querySelector('.mg-drop'); if (zone) zone.classList.toggle('mg-over', on); e.preventDefault(); }};
element.addEventListener('change', e => {{ if (e.target.type === 'file') {{ e.stopPropagation(); send(e.target.files[0]); }} }});
element.addEventListener('dragover', e => over(e, true));
element.addEventListener('dragleave', e => over(e, false));
element.addEventListener('drop', e => {{ over(e, false); send(e.dataTransfer.files[0]); }});
document.addEventListener('paste', e => {{ const file = [...(e.clipboardData ? e.clipboardData.files : [])][0]; if (file) send(file); }});
element.addEventListener('click', e => {{ if (e.target.closest('.mg-forget')) trigger('clear'); }});
watch('value', () => {{  // only who is searched is marked among those to pick
  const shown = element.querySelector('[data-picked]'), key = shown ? shown.dataset.picked : '';
  document.querySelectorAll('#mg-some button[data-key]').forEach(b => b.setAttribute('aria-pressed', b.dataset.key === key));
}});
'''

CARDS_SCRIPT = '''
element.addEventListener('click', e => {
  const card = e.target.closest('button[data-key]');
  if (!card) return;
  element.querySelectorAll('button[data-key]').forEach(b => b.setAttribute('aria-pressed', b === card));
  trigger('select', {key: card.dataset.key});
});
'''

# The hits of somebody else are brought into view where the filters fill the screen; the same person's stay where they are
HITS_SCRIPT = CARDS_SCRIPT + '''
let last = '';
watch('value', () => {
  const list = element.querySelector('[data-query]'), now = list ? list.dataset.query : '';
  if (now && now !== last && innerWidth < 700) document.querySelector('#mg-status').scrollIntoView({behavior: 'smooth'});
  last = now;
});
'''

# A new explanation is brought into view and read out; the same one painted anew stays where it is
WHY_SCRIPT = '''
let last = '';
watch('value', () => {
  const section = element.querySelector('section[data-hit]'), now = section ? section.dataset.hit : '';
  if (now && now !== last) { section.scrollIntoView({behavior: 'smooth', block: 'nearest'}); section.querySelector('h3').focus({preventScroll: true}); }
  last = now;
});
'''
