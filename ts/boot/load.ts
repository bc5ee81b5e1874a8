/** Bundles and their bytecode. */

import { readFileSync } from "node:fs";
import { Script } from "node:vm";

/** What runs a bundle, which is given what CommonJS modules get. */
export type Bundle = (require: NodeJS.Require, filename: string) => void;

/**
 * The script of `BASE.bundle.cjs`; running it yields a {@link Bundle}. `BASE.cache` spares parsing and compiling. Other versions
 * of Node refuse that, and compile what they need of the source; so they do without the file.
 */
export function bundleScript(base: string): Script {
  const filename = `${base}.bundle.cjs`;
  // A bundle is ASCII (esbuild escapes the rest), and V8 takes one byte for a character then.
  const source = readFileSync(filename, "latin1");
  // On one line with the bundle's first, so that errors tell its line numbers.
  return new Script(`((require, __filename) => {${source}\n})`, { filename, ...bytecode(base) });
}

function bytecode(base: string): { cachedData?: Buffer } {
  try {
    return { cachedData: readFileSync(`${base}.cache`) };
  } catch {
    return {};
  }
}
