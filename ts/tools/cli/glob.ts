/** Names of files by pattern, as a shell's glob has it. */

import { lstatSync, readdirSync } from "node:fs";
import { errnoOf } from "../../tapdisk/errors.ts";

/** The alternatives that braces stand for. */
function braces(pattern: string): string[] {
  let depth = 0;
  let open = -1;
  let parts: string[] = [];
  let start = 0;
  for (let at = 0; at < pattern.length; at++) {
    const letter = pattern[at];
    if (letter === "\\") {
      at += 1;
    } else if (letter === "{") {
      if (depth === 0) {
        open = at;
        start = at + 1;
        parts = [];
      }
      depth += 1;
    } else if (letter === "," && depth === 1) {
      parts.push(pattern.slice(start, at));
      start = at + 1;
    } else if (letter === "}" && depth > 0) {
      depth -= 1;
      if (depth === 0) {
        const [before, after] = [pattern.slice(0, open), pattern.slice(at + 1)];
        if (parts.length > 0) {
          parts.push(pattern.slice(start, at));
          return parts.flatMap((part) => braces(before + part + after));
        }
      }
    }
  }
  return [pattern];
}

/** The regular expression for a pattern of one name; undefined if it has no wildcards. */
function matcher(pattern: string): RegExp | undefined {
  let wild = false;
  let source = "";
  for (let at = 0; at < pattern.length; at++) {
    const letter = pattern.charAt(at);
    const close = letter === "[" ? pattern.indexOf("]", at + 2) : -1;
    if (letter === "*" || letter === "?") {
      wild = true;
      source += letter === "*" ? ".*" : ".";
    } else if (close > 0) {
      wild = true;
      const set = pattern
        .slice(at + 1, close)
        .replace(/^!/, "^")
        .replaceAll(/[\\[]/g, "\\$&");
      source += `[${set}]`;
      at = close;
    } else {
      if (letter === "\\" && at + 1 < pattern.length) at += 1;
      source += pattern.charAt(at).replaceAll(/[.*+?^${}()|[\]\\/]/g, "\\$&");
    }
  }
  return wild ? new RegExp(`^${source}$`, "us") : undefined;
}

/** Whether a name fits a pattern; what begins with a dot fits only patterns that do. */
export function matches(pattern: string, name: string): boolean {
  return braces(pattern).some((one) => {
    if (name.startsWith(".") && !one.startsWith(".")) return false;
    const expression = matcher(one);
    return expression === undefined ? one.replaceAll(/\\(.)/gu, "$1") === name : expression.test(name);
  });
}

/** What a pattern leads to. */
export interface GlobResult {
  readonly paths: readonly string[];
  /** Folders that can't be read, and the errno value that says why. */
  readonly failures: readonly { readonly path: string; readonly errno: number }[];
}

/** The paths of all files that fit a pattern, sorted by their bytes. */
export function glob(pattern: string): GlobResult {
  const failures: { path: string; errno: number }[] = [];
  const paths = braces(pattern).flatMap((one) => {
    let found = [one.startsWith("/") ? "/" : ""];
    const parts = one.split("/").filter((name) => name !== "");
    for (const [index, part] of parts.entries()) {
      const expression = matcher(part);
      found = found.flatMap((folder) => {
        const join = (name: string) => (folder === "" || folder.endsWith("/") ? folder + name : `${folder}/${name}`);
        if (expression === undefined) {
          const path = join(part.replaceAll(/\\(.)/gu, "$1"));
          return index + 1 < parts.length || exists(path) ? [path] : [];
        }
        try {
          return readdirSync(folder === "" ? "." : folder)
            .filter((name) => expression.test(name) && (part.startsWith(".") || !name.startsWith(".")))
            .map(join);
        } catch (error) {
          failures.push({ path: folder === "" ? "." : folder, errno: errnoOf(error) });
          return [];
        }
      });
    }
    return found.sort((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)));
  });
  return { paths, failures };
}

function exists(path: string): boolean {
  try {
    lstatSync(path);
    return true;
  } catch {
    return false;
  }
}
