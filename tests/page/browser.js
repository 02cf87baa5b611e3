// Drives the status page in a headless Chromium, for tests/servers/page.rs.
//
//   node browser.js PLAYWRIGHT_CORE CHROMIUM URL FOLDER
//
// Reads a command a line from standard input, answers each with a line: "ok", or what was wrong.
//   see TEXT             waits until the page shows the text
//   type TEXT            types into whatever has the focus, after pressing "/"
//   clear                empties the search field
//   count SELECTOR N     waits until so many elements match
//   fill SELECTOR TEXT   types into a field
//   click NAME           presses the button of this name
//   press SELECTOR       clicks an element
//   reload               loads the page again
//   shot NAME WIDTH SCHEME [HEIGHT]   a screenshot in light or dark, and whether the page is wider than the window
//   console              what the console and the page's errors have said so far
const [, , playwright, executablePath, url, folder] = process.argv;
const { chromium } = require(playwright);

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });
  const page = await browser.newPage();
  const said = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) said.push(message.text()); });
  page.on("pageerror", (error) => said.push(String(error)));
  page.on("request", (request) => { if (!request.url().startsWith(url) && !request.url().startsWith("data:")) said.push("asked " + request.url()); });
  await page.goto(url);
  const commands = {
    async see(text) { await page.getByText(text).first().waitFor({ timeout: 30000 }); },
    async type(text) { await page.locator("h1").click(); await page.keyboard.press("/"); await page.keyboard.type(text); },
    async clear() { await page.locator("#search").fill(""); },
    async count(rest) {
      const [selector, count] = rest.split(" ");
      await page.waitForFunction(([selector, count]) => document.querySelectorAll(selector).length === Number(count), [selector, count], { timeout: 30000 });
    },
    async fill(rest) { const at = rest.indexOf(" "); await page.locator(rest.slice(0, at)).fill(rest.slice(at + 1)); },
    async click(name) { await page.getByRole("button", { name, exact: true }).click({ timeout: 30000 }); },
    async press(selector) { await page.locator(selector).click({ timeout: 30000 }); },
    async reload() { await page.reload(); },
    async shot(rest) {
      const [name, width, scheme, height] = rest.split(" ");
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width: Number(width), height: Number(height || 900) });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      await page.screenshot({ path: folder + "/" + name + ".png", fullPage: true });
      if (wide > Number(width)) throw new Error("the page is " + wide + " px wide");
    },
    async console() { if (said.length) throw new Error(said.join("; ")); },
  };
  const lines = require("readline").createInterface({ input: process.stdin });
  for await (const line of lines) {
    const [name] = line.split(" ", 1);
    try {
      await commands[name](line.slice(name.length + 1));
      console.log("ok");
    } catch (error) {
      console.log(String(error).split("\n").slice(0, 3).join(" "));
    }
  }
  await browser.close();
})();
