// What happens in the browser. A form is sent when one of its fields changes or one of its buttons is pressed; each element
// of the answer takes the place of the one with its id. Nothing is asked of any other server.
const byId = id => document.getElementById(id)
const searchForm = byId('search')
const status = text => `<p id="status" role="alert" class="alert">${text}</p>`
const shown = new Map()  // id -> HTML as it came: what stays the same is left alone
let latest = 0, timer

async function ask(url, body) {
  const turn = ++latest
  document.body.classList.add('busy')
  let html
  try {
    const answer = await fetch(url, {method: 'POST', body, headers: {'HX-Request': 'true'}})
    html = answer.ok ? await answer.text() : status(`The page was refused an answer (${answer.status}): open it again.`)
  } catch { html = status('The page gets no answer: is magnifier_app still running?') }
  if (turn !== latest) return  // something newer was asked meanwhile
  document.body.classList.remove('busy')
  for (const fresh of [...new DOMParser().parseFromString(html, 'text/html').body.children]) put(fresh)
  for (const card of document.querySelectorAll('button.card'))
    card.setAttribute('aria-pressed', card.value === searchForm.querySelector(`input[name=${card.name}]`)?.value)
}

function put(fresh) {
  const old = byId(fresh.id), html = fresh.outerHTML
  if (!old || shown.get(fresh.id) === html && !fresh.querySelector('input, select')) return
  shown.set(fresh.id, html)
  const at = old.contains(document.activeElement) && document.activeElement
  old.replaceWith(fresh)
  if (at) (byId(at.id) || fresh.querySelector(`select[name="${at.name}"], button[name="${at.name}"]`) || byId('file')).focus()
}

function send(form, more = {}) {
  const body = new URLSearchParams(new FormData(form))
  for (const [name, value] of Object.entries(more)) body.set(name, value)
  return ask(form.getAttribute('action'), body)
}

// Somebody else is searched; hits are brought into view where the form fills the screen
async function choose(url, body) {
  open(byId('tab-search'))
  await ask(url, body)
  await send(searchForm)
  if (innerWidth < 700) byId('status').scrollIntoView({behavior: 'smooth'})
}

function upload(file) {
  if (!file) return
  const fits = file.size <= byId('file').dataset.most
  byId('file').value = ''  // so that the same file may be chosen again
  return choose(`upload?size=${file.size}`, fits ? file.slice(0, file.size, 'application/octet-stream') : '')
}

async function press(button) {
  if (button.name === 'query') return choose('choose', new URLSearchParams({query: button.value}))
  await send(button.form, {[button.name]: button.value})
  const title = button.name === 'hit' && document.querySelector('#why h3')
  if (!title) return
  title.scrollIntoView({behavior: 'smooth', block: innerWidth < 700 ? 'start' : 'nearest'})
  title.focus({preventScroll: true})
}

function open(tab) {
  for (const other of document.querySelectorAll('[role=tab]')) {
    other.setAttribute('aria-selected', other === tab)
    other.tabIndex = other === tab ? 0 : -1
    byId(other.getAttribute('aria-controls')).hidden = other !== tab
  }
  const form = byId(tab.getAttribute('aria-controls')).querySelector('form')
  if (form !== searchForm) send(form)
}

document.addEventListener('click', e => {
  const button = e.target.closest('button')
  if (button?.role === 'tab' || button?.getAttribute('role') === 'tab') open(button)
  else if (button?.name) press(button)
})
document.addEventListener('keydown', e => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[e.key], tabs = [...document.querySelectorAll('[role=tab]')]
  if (!step || !tabs.includes(e.target)) return
  const next = tabs[(tabs.indexOf(e.target) + step + tabs.length) % tabs.length]
  next.focus()
  open(next)
})
document.addEventListener('change', e => {
  if (e.target.type === 'file') upload(e.target.files[0])
  else if (e.target.form && e.target.type !== 'range') send(e.target.form)
})
document.addEventListener('input', e => {
  if (e.target.type !== 'range') return
  document.querySelector(`output[for=${e.target.id}]`).value = (+e.target.value).toFixed(2)
  clearTimeout(timer)
  timer = setTimeout(() => send(e.target.form), 120)  // once it rests
})
document.addEventListener('submit', e => { e.preventDefault(); send(e.target) })
for (const [event, over] of [['dragover', true], ['dragleave', false], ['drop', false]])
  document.addEventListener(event, e => {
    e.preventDefault()
    byId('drop').classList.toggle('over', over)
    if (event === 'drop') upload(e.dataTransfer.files[0])
  })
document.addEventListener('paste', e => upload(e.clipboardData?.files[0]))
send(searchForm)
