// Manual pages and completions, as the programs that they are for take them; and their installation.

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { references } from "../ts/tools/cli/reference/tools.ts";
import { temporaryDirectory } from "./support/run.ts";
import { runIn } from "./support/tools.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const share = join(root, "build/share");
const names = references().map(({ name }) => name);

/** A folder with files to complete. */
function folderWithFiles(): string {
  const folder = temporaryDirectory();
  for (const name of ["disk one.vhd", "other.vhd"]) writeFileSync(join(folder, name), "");
  return folder;
}

describe("manual pages", () => {
  test.each(names)("%s(1) has nothing that groff minds", (name) => {
    const page = join(share, `man/man1/${name}.1`);
    const checked = runIn(root, "groff", ["-man", "-Tutf8", "-P-c", "-P-b", "-P-u", "-ww", "-rLL=100n", page]);
    expect(checked).toMatchObject({ status: 0, stderr: "" });
    const text = checked.stdout.toString();
    for (const section of ["NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS"]) expect(text).toContain(section);
    expect(text).toMatch(new RegExp(`${name} [-‐−] `));
  });

  test("vhd-util(1) has every command with its options", () => {
    const page = readFileSync(join(share, "man/man1/vhd-util.1"), "utf8");
    for (const { name, options } of references().find((one) => one.name === "vhd-util")?.commands ?? []) {
      expect(page).toContain(`.SS \\fBvhd\\-util\\fR \\fB${name}\\fR`);
      for (const { description } of options) expect(page).toContain(description.replaceAll("-", "\\-"));
    }
  });
});

describe("completions", () => {
  /** What each shell offers for a line with the cursor at its end. */
  const shells: Readonly<Record<string, (line: string, folder: string) => string[]>> = {
    bash(line, folder) {
      const [name = "", ...rest] = line.split(" ");
      const words = [name, ...rest].map((word) => `'${word}'`).join(" ");
      const script = [
        `source '${share}/bash-completion/completions/${name}'`,
        "compopt() { files=1; }",
        `COMP_WORDS=(${words}) COMP_CWORD=${rest.length}`,
        `_${name.replaceAll("-", "_")}`,
        `for word in "\${COMPREPLY[@]}"; do echo "$word"; done`,
        `[[ -z \${files:-} ]] || compgen -f -- '${rest.at(-1) ?? ""}'`,
      ].join("\n");
      return lines(runIn(folder, "bash", ["--norc", "-c", script]).stdout);
    },
    fish(line, folder) {
      const [name = ""] = line.split(" ");
      const script = `source '${share}/fish/vendor_completions.d/${name}.fish'; complete -C '${line}'`;
      return lines(runIn(folder, "fish", ["--no-config", "-c", script], { env: { HOME: folder } }).stdout).map(
        (offer) => offer.split("\t")[0] ?? "",
      );
    },
    zsh(line, folder) {
      // A shell in a pseudo terminal, where a key prints what its completion would offer.
      const script = [
        "zmodload zsh/zpty",
        "zpty z zsh -f -i",
        `zpty -w z "PROMPT=; fpath=('${share}/zsh/site-functions' \\$fpath); autoload -Uz compinit; compinit -u -D"`,
        'zpty -w z \'offering() { compadd() { if [[ $@ == *-[OAD]* ]]; then builtin compadd "$@"; return; fi; local -a found; builtin compadd -O found "$@"; print -rl -- $found; }; _main_complete; }\'',
        'zpty -w z \'zle -C offer complete-word offering; bindkey "^X" offer; print REA""DY\'',
        "zpty -r -m z all '*READY*'",
        `zpty -w -n z $'${line}\\x18'`,
        "sleep 1",
        "while zpty -r -t z out; do print -rn -- $out; done",
        "zpty -d z",
      ].join("\n");
      const { stdout } = runIn(folder, "zsh", ["-f", "-c", script], { env: { HOME: folder, TERM: "dumb" } });
      // The first offer stands behind the line itself.
      return lines(stdout).map((one) => one.split(line).at(-1)?.trim() ?? "");
    },
  };

  function lines(text: Buffer): string[] {
    return text
      .toString()
      .split(/\r?\n/)
      .map((one) => one.trim().replaceAll("\\ ", " "))
      .filter((one) => one !== "");
  }

  const cases: readonly (readonly [line: string, offered: readonly string[], not: readonly string[]])[] = [
    ["vhd-util s", ["set", "scan", "snapshot"], ["query"]],
    ["vhd-util set --", ["--name", "--help"], ["--json"]],
    ["vhd-util set -f ", ["hidden", "marker"], ["other.vhd"]],
    ["vhd-util query -n oth", ["other.vhd"], ["hidden"]],
    ["vhd-util convert --to ", ["raw", "fixed", "dynamic"], ["other.vhd"]],
    ["tapdisk serve --io ", ["auto", "uring", "threads"], []],
    ["td-util create ", ["vhd", "aio"], []],
    ["cbt-util get -n o", ["other.vhd"], []],
  ];

  for (const shell of ["bash", "fish", "zsh"]) {
    test.each(cases)(`${shell} completes %j`, (line, offered, not) => {
      const found = shells[shell]?.(line, folderWithFiles()) ?? [];
      for (const word of offered) expect(found).toContain(word);
      for (const word of not) expect(found).not.toContain(word);
    });
  }
});

test("make install puts all of it where it belongs", () => {
  const target = temporaryDirectory();
  mkdirSync(join(target, "old"));
  for (let round = 0; round < 2; round++) {
    const installed = runIn(root, "scripts/install", [], { env: { PREFIX: "/usr", DESTDIR: target } });
    expect(installed.status).toBe(0);
  }
  const usr = join(target, "usr");
  expect(readdirSync(join(usr, "bin"))).toEqual(expect.arrayContaining(["tapdisk", "vhd-util"]));
  expect(readdirSync(join(usr, "sbin"))).toEqual(["cbt-util", "td-util"]);
  for (const name of names) {
    const folder = name === "td-util" || name === "cbt-util" ? "sbin" : "bin";
    const { status, stdout } = runIn(target, join(usr, folder, name), ["--version"]);
    expect([status, stdout.toString()]).toEqual([0, expect.stringMatching(new RegExp(`^${name} \\(tapvhd\\) \\d`))]);
    expect(readdirSync(join(usr, "share/man/man1"))).toContain(`${name}.1`);
    expect(readdirSync(join(usr, "share/zsh/site-functions"))).toContain(`_${name}`);
  }
  expect(readdirSync(join(usr, "lib"))).toEqual(["tapvhd"]);
});
