/** Writes the manual pages, completions and JSON Schemas of all commands below the folder that is given, as below `share` of a prefix. */

import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { bashCompletion, fishCompletion, zshCompletion } from "./completion.ts";
import { manualPage } from "./man.ts";
import { references, schemas } from "./tools.ts";

const [folder] = process.argv.slice(2);
if (folder === undefined) throw new Error("which folder?");

function write(path: string, text: string): void {
  mkdirSync(join(folder ?? "", dirname(path)), { recursive: true });
  writeFileSync(join(folder ?? "", path), text);
}

for (const reference of references()) {
  const { name } = reference;
  const files = {
    [`man/man1/${name}.1`]: manualPage(reference),
    [`bash-completion/completions/${name}`]: bashCompletion(reference),
    [`zsh/site-functions/_${name}`]: zshCompletion(reference),
    [`fish/vendor_completions.d/${name}.fish`]: fishCompletion(reference),
  };
  for (const [path, text] of Object.entries(files)) write(path, text);
}
for (const [name, schema] of Object.entries(schemas())) {
  write(`tapvhd/${name}`, `${JSON.stringify(schema, null, 2)}\n`);
}
