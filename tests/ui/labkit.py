"""Drive notebooks in a real JupyterLab with a real Chromium, and nothing but this machine.

A `Lab` is a server with folders of its own, a `browser` refuses and notes every request to elsewhere, and a `Book` is a
notebook that is open in it: run it, press its widgets, ask its Python what it knows, photograph it, weigh it.
"""
import ast, json, os, shutil, socket, statistics, subprocess, sys, time, urllib.request
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT/'runs/ui'                                   # screenshots and latencies: for people, never compared
PANEL = '.jp-NotebookPanel:not(.lm-mod-hidden)'          # the notebook on top
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync', '--disable-background-networking',
         '--disable-component-update', '--force-device-scale-factor=1', '--force-color-profile=srgb', '--font-render-hinting=none',
         '--disable-lcd-text', '--enable-precise-memory-info']


def find_chromium():
    "The browser of this system, or None."
    names = [os.environ.get('CHROMIUM'), 'chromium', 'chromium-browser', 'google-chrome']
    return next((found for found in map(shutil.which, filter(None, names)) if found), None)


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


# -------------------------------------------------------------------------------------------------------------- server

# No news, no search for updates, nothing saved behind our back, every cell kept in the page.
SETTINGS = {'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False, doNotDisturbMode=True),
            'notebook-extension/tracker': dict(windowingMode='none'),
            'docmanager-extension/plugin': dict(autosave=False)}
# The debugger asks kernels for their state, and a kernel that ends meanwhile leaves an error in the page's console.
PAGE = dict(disabledExtensions={'@jupyterlab/debugger-extension': True})
CALM = '* { transition: none !important; animation: none !important; caret-color: transparent !important; }'
FOLDERS = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime', IPYTHONDIR='ipython', MPLCONFIGDIR='mpl',
               JUPYTERLAB_WORKSPACES_DIR='workspaces', JUPYTERLAB_SETTINGS_DIR='settings', HOME='home')


class Lab:
    "A JupyterLab of our own: its settings, kernels and notebooks all live below `folder`."
    def __init__(self, folder, token='test'):
        self.folder, self.token, self.port = Path(folder), token, free_port()
        self.url, self.books = f'http://127.0.0.1:{self.port}', self.folder/'books'
        self.books.mkdir(parents=True)
        self._settle()
        self.log = open(self.folder/'lab.log', 'w')
        self.process = subprocess.Popen(self._command(), env=self._environment(), cwd=self.books, stdout=self.log, stderr=subprocess.STDOUT,
                                        start_new_session=True)

    program, application = 'jupyterlab', 'LabApp'

    def _command(self):
        options = {'ServerApp.ip': '127.0.0.1', 'ServerApp.port': self.port, 'ServerApp.port_retries': 0, 'IdentityProvider.token': self.token,
                   'ServerApp.root_dir': self.books, f'{self.application}.expose_app_in_browser': True, 'LabApp.extension_manager': 'readonly'}
        return [sys.executable, '-m', self.program, '--no-browser', '--allow-root', *(f'--{k}={v}' for k, v in options.items())]

    def enter(self, page):
        "Open the lab in a page, empty, with as much room as there is."
        page.goto(f'{self.url}/lab?token={self.token}&reset', wait_until='domcontentloaded')
        page.wait_for_function('() => window.jupyterapp !== undefined')
        page.evaluate('async () => { await window.jupyterapp.restored; window.books = {}; }')
        page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area').catch(() => null)") # more room
        page.add_style_tag(content=CALM)

    def open(self, page, name, kernel=None):
        "Open a notebook in the page, with a kernel of its own or one that runs."
        page.evaluate(OPEN, [name, kernel])

    def _environment(self):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(('JUPYTER', 'IPYTHON', 'MPLBACKEND'))}
        own = {name: str(self.folder/place) for name, place in FOLDERS.items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get('PATH', '')])
        return {'OMP_NUM_THREADS': '2', **inherited, **own, 'PATH': path, 'JUPYTER_PLATFORM_DIRS': '1', 'NO_PROXY': '127.0.0.1', 'PYTHONHASHSEED': '0'}

    def _settle(self):
        for place in FOLDERS.values(): (self.folder/place).mkdir()
        written = {f'settings/@jupyterlab/{name}.jupyterlab-settings': value for name, value in SETTINGS.items()} | {'config/labconfig/page_config.json': PAGE}
        for name, value in written.items():
            (self.folder/name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder/name).write_text(json.dumps(value))

    def get(self, path, **sent):
        "What the server says to a question, or to what it is sent."
        request = urllib.request.Request(self.url + path, headers={'Authorization': f'token {self.token}'}, data=json.dumps(sent).encode() if sent else None)
        with urllib.request.urlopen(request, timeout=10) as answer: return json.load(answer)

    @cached_property
    def kernel(self):
        "One kernel for many notebooks, one after the other: its libraries are loaded once."
        return self.get('/api/kernels', name='python3')

    def wait(self, seconds=120):
        "Until the server answers."
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None: break
            with suppress(OSError): return self.get('/api/status')
            time.sleep(0.1)
        raise RuntimeError('JupyterLab does not answer:\n' + (self.folder/'lab.log').read_text()[-2000:])

    def client(self, book):
        "A second client of a notebook's kernel, which leaves no trace in the page."
        from jupyter_client import BlockingKernelClient
        kernel, = [s['kernel']['id'] for s in self.get('/api/sessions') if s['path'] == book]
        client = BlockingKernelClient()
        client.load_connection_file(str(self.folder/f'runtime/kernel-{kernel}.json'))
        client.start_channels()
        return client

    def stop(self):
        self.process.terminate()                                       # heard as a wish to stop, with all kernels
        try: self.process.wait(15)
        except subprocess.TimeoutExpired: self.process.kill(); self.process.wait()
        self.log.close()


class Notebook7(Lab):
    "A Jupyter Notebook of our own: each notebook is a page of its own."
    program, application = 'notebook', 'JupyterNotebookApp'

    def enter(self, page): page.goto(f'{self.url}/tree?token={self.token}', wait_until='domcontentloaded')

    def open(self, page, name, kernel=None):
        page.goto(f'{self.url}/notebooks/{name}?token={self.token}', wait_until='domcontentloaded')
        page.wait_for_function('() => window.jupyterapp !== undefined')
        page.evaluate(FOUND, name)
        page.add_style_tag(content=CALM)


# ------------------------------------------------------------------------------------------------------------- browser

# What JupyterLab may say while we close a notebook with its kernel: a request of its widgets was not answered yet. At any other time it is a complaint.
UNANSWERED = 'Canceled future for create_subshell_request'


@contextmanager
def driver():
    "Playwright itself: a process may have one, for as many browsers as it likes."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p: yield p.chromium


@contextmanager
def browser(chromium, folder, lab, size=(1100, 1000)):
    "A page with the lab open; `page.refused` are the addresses it wanted from elsewhere, `page.complaints` the errors of its console."
    context = chromium.launch_persistent_context(str(folder), executable_path=find_chromium(), headless=True, args=FLAGS, reduced_motion='reduce',
                                                 viewport=dict(width=size[0], height=size[1]), color_scheme='light', locale='en-US', timezone_id='UTC')
    try:
        page = context.pages[0] if context.pages else context.new_page()
        page.refused, page.complaints = [], []
        def gate(route):
            url = route.request.url
            if url.startswith((lab.url, 'data:', 'blob:')): return route.continue_()
            page.refused.append(url); route.abort()
        context.route('**/*', gate)
        page.on('console', lambda m: page.complaints.append(m.text) if m.type == 'error' else None)
        page.on('pageerror', lambda e: page.complaints.append(str(e)))
        page.set_default_timeout(60_000)
        lab.enter(page)
        yield page
    finally: context.close()


def until(ask, want=True, seconds=30):
    "Poll until `ask()` is `want`: a repaint says nothing about what Python has heard."
    end = time.monotonic() + seconds
    while (got := ask()) != want:
        assert time.monotonic() < end, f'still {got!r}, not {want!r}'
        time.sleep(0.05)
    return got


def layout(widget, parts):
    "Where parts of a widget lie inside it, (x, y, width, height) in whole pixels, once two looks agree: the page may scroll, the widget may not move within itself."
    def look():
        corner = widget.bounding_box()
        boxes = [part.bounding_box() for part in parts]
        return [(round(b['x'] - corner['x']), round(b['y'] - corner['y']), round(b['width']), round(b['height'])) for b in boxes]
    seen, end = None, time.monotonic() + 10
    while (now := look()) != seen and time.monotonic() < end:
        seen = now
        time.sleep(0.25)
    return now


# ------------------------------------------------------------------------------------------------------------ notebook

OPEN = """async ([path, kernel]) => {
  const panel = await window.jupyterapp.commands.execute('docmanager:open', {path, factory: 'Notebook', ...(kernel ? {kernel} : {})});
  await panel.revealed; await panel.context.ready; await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
  window.books[path] = panel;
}"""
FOUND = """async path => {
  await window.jupyterapp.restored;
  const notebook = () => [...window.jupyterapp.shell.widgets('main')].find(w => w.context?.path === path);
  while (!notebook()) await new Promise(done => setTimeout(done, 50));
  const panel = notebook();
  await panel.revealed; await panel.context.ready; await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
  window.books = {[path]: panel};
}"""
START = "() => { window.running = window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
ABOVE = """([path, said]) => {
  const book = window.books[path].content;
  book.activeCellIndex = book.widgets.findIndex(cell => cell.model.sharedModel.source.includes(said));
  window.running = window.jupyterapp.commands.execute('notebook:run-all-above');
}"""
WAIT = "ms => Promise.race([window.running.then(() => true, () => true), new Promise(done => setTimeout(() => done(false), ms))])"
IDLE = "path => window.books[path].sessionContext.session?.kernel?.status === 'idle'"
INTERRUPT = "async path => { await window.books[path].sessionContext.session.kernel.interrupt(); }"
CLOSE = """async ([path, end]) => {
  const panel = window.books[path];
  delete window.books[path];
  if (end) await panel.sessionContext.shutdown();
  panel.context.model.dirty = false;
  panel.dispose();
}"""
FORGET = "import ipywidgets; ipywidgets.Widget.close_all(); get_ipython().run_line_magic('reset', '-f'); import gc; gc.collect(); del gc"
THEME = "async theme => { await window.jupyterapp.commands.execute('apputils:change-theme', {theme}); }"
# Notes how long after the press of a button or key `probe`, an expression over `panel`, has another value; to a frame (17 ms).
ARM = """probe => {
  const panel = document.querySelector('PANEL'), value = () => String(PROBE), before = value(), armed = performance.now();
  let pressed = null;
  for (const kind of ['pointerdown', 'keydown']) document.addEventListener(kind, e => { pressed ??= e.timeStamp; }, {capture: true, once: true});
  window.waited = new Promise(done => {
    const look = () => {
      if (pressed !== null && value() !== before) done(performance.now() - pressed);
      else if (performance.now() - armed > 15000) done(null);
      else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
}""".replace('PANEL', PANEL)


def write_book(path, cells):
    "A notebook of code cells, the same to the byte every time."
    import nbformat
    book = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')))
    book.cells = [nbformat.v4.new_code_cell(source, id=f'cell-{i}') for i, source in enumerate(cells)]
    nbformat.write(book, path)


class Book:
    "A notebook that is open in the lab."
    def __init__(self, lab, page, name, shared=False): # `name` as the server knows it; `shared`: in the lab's kernel, which outlives it
        self.lab, self.page, self.name, self.shared = lab, page, name, shared
        lab.open(page, name, lab.kernel if shared else None)
        self.client, self.panel = lab.client(name), page.locator(PANEL)

    def run(self, seconds=180):
        "Run all cells and wait; a cell that fails is an error here, with its last line."
        self.start(); self.wait(seconds)
        for failed in self.panel.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all():
            if 'Error' in (text := failed.inner_text()): raise AssertionError(f'{self.name}: {text[-800:]}')
        return self

    def start(self):
        "Run all cells, do not wait."
        self.page.evaluate(START)
        return self

    def run_above(self, said, seconds=180):
        "Run all cells above the one that says this, and wait."
        self.page.evaluate(ABOVE, [self.name, said])
        self.wait(seconds)
        return self

    def wait(self, seconds=180):
        "Until all cells have run and the kernel rests."
        assert self.page.evaluate(WAIT, 1000*seconds), f'{self.name}: cells still run after {seconds} s'
        self.page.wait_for_function(IDLE, arg=self.name)

    def python(self, expression, seconds=60):
        "What an expression of literals is in the kernel; waits while a cell runs."
        reply = self.client.execute_interactive('', silent=True, store_history=False, allow_stdin=False, timeout=seconds,
                                                user_expressions=dict(value=expression), output_hook=lambda message: None)
        value = reply['content']['user_expressions']['value']
        if value['status'] != 'ok': raise AssertionError(f"{expression}: {value['ename']}: {value['evalue']}")
        return ast.literal_eval(value['data']['text/plain'])

    def until(self, expression, want=True, seconds=30): return until(lambda: self.python(expression), want, seconds)
    def interrupt(self): self.page.evaluate(INTERRUPT, self.name)

    def shot(self, name, of=None, themes=('light', 'dark')):
        "Photograph the notebook, or a locator in it, as runs/ui/NAME_light.png and NAME_dark.png."
        SHOTS.mkdir(parents=True, exist_ok=True)
        for theme in themes:
            if theme == 'dark': self._theme('dark')
            (of or self.panel).screenshot(path=SHOTS/f'{name}_{theme}.png')
        if 'dark' in themes: self._theme('light')

    def _theme(self, theme):
        self.page.emulate_media(color_scheme=theme)
        self.page.evaluate(THEME, f'JupyterLab {theme.title()}')
        self.page.wait_for_function(f"() => document.body.dataset.jpThemeName === 'JupyterLab {theme.title()}'")
        self.page.wait_for_timeout(300)

    def latency(self, name, press, probe, times=20):
        "Milliseconds from `press(i)` to another value of `probe`, a JavaScript expression over `panel`; noted in runs/ui/latency.json."
        took = []
        for i in range(times):
            self.page.evaluate(ARM.replace('PROBE', f'({probe})'), probe)
            press(i)
            took.append(self.page.evaluate('async () => await window.waited'))
            self.page.wait_for_timeout(60)
        seen = sorted(t for t in took if t is not None)
        row = dict(presses=times, unseen=times - len(seen), median=round(statistics.median(seen), 1) if seen else None,
                   p95=round(seen[int(0.95*(len(seen) - 1))], 1) if seen else None)
        SHOTS.mkdir(parents=True, exist_ok=True)
        file = SHOTS/'latency.json'
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | {name: row}, indent=1))
        return row

    def memory(self):
        "Megabytes of the kernel (resident, after a collection) and of the page's JavaScript (after a collection)."
        kernel = self.python('(__import__("gc").collect(), __import__("psutil").Process().memory_info().rss)[1]')
        session = self.page.context.new_cdp_session(self.page)
        session.send('HeapProfiler.collectGarbage')
        session.send('Performance.enable')
        metrics = {m['name']: m['value'] for m in session.send('Performance.getMetrics')['metrics']}
        session.detach()
        return kernel/1e6, metrics['JSHeapUsedSize']/1e6

    def close(self):
        "Close the page; a kernel of its own ends, a shared one forgets."
        self.page.evaluate(CLOSE, [self.name, not self.shared])
        if self.shared: self.client.execute_interactive(FORGET, silent=True, store_history=False, allow_stdin=False, timeout=60, output_hook=lambda message: None)
        self.client.stop_channels()
