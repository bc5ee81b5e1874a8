/** Completions for bash, zsh and fish: static scripts, so that a press of the tabulator key starts no program. */

import type { Reference, ReferenceArgument, ReferenceOption, Value } from "./model.ts";

/** A word between single quotes of a shell. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A name for functions of shells. */
function identifier(name: string): string {
  return `_${name.replaceAll(/[^A-Za-z0-9]/g, "_")}`;
}

function firstSentence(text: string): string {
  return text.split(/(?<=\.)\s/)[0]?.replace(/\.$/, "") ?? "";
}

function flagsOf(options: readonly ReferenceOption[]): string[] {
  return options.flatMap(({ flags }) => flags);
}

/** What is completed where an argument can be: choices of any of them, and files. */
function choicesOf(args: readonly ReferenceArgument[]): string[] {
  return args.flatMap(({ kind }) => (typeof kind === "string" ? [] : kind));
}

function takesFiles(args: readonly ReferenceArgument[]): boolean {
  return args.some(({ kind }) => kind === "file");
}

/** The script for bash-completion: `share/bash-completion/completions/NAME`. */
export function bashCompletion(reference: Reference): string {
  const { name, commands } = reference;
  const contexts = [{ path: "", reference }, ...commands.map((sub) => ({ path: sub.name, reference: sub }))];
  const words = (list: readonly string[]) => `COMPREPLY=($(compgen -W ${quoted(list.join(" "))} -- "$current"))`;
  const files = "compopt -o default";
  const value = ({ kind }: Value) => (kind === "file" ? files : kind === "text" ? ":" : words(kind));
  const values = contexts.flatMap(({ path, reference: { options } }) =>
    options.flatMap((option) =>
      option.value === undefined
        ? []
        : [
            `    ${option.flags.map((flag) => quoted(`${path} ${flag}`)).join(" | ")}) ${value(option.value)}; return ;;`,
          ],
    ),
  );
  const options = contexts.map(
    ({ path, reference: { options } }) => `    ${quoted(path)}) ${words(flagsOf(options))} ;;`,
  );
  const args = contexts.map(({ path, reference: { commands: subs, arguments: taken } }) => {
    const choices = [...subs.map((sub) => sub.name), ...choicesOf(taken)];
    const actions = [...(choices.length > 0 ? [words(choices)] : []), ...(takesFiles(taken) ? [files] : [])];
    return `    ${quoted(path)}) ${actions.join("; ") || ":"} ;;`;
  });
  const find =
    commands.length === 0
      ? []
      : [
          `  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do`,
          `    case $word in ${commands.map((sub) => sub.name).join(" | ")}) command=$word; break ;; esac`,
          "  done",
        ];
  return [
    `# bash completion for ${name}`,
    `${identifier(name)}() {`,
    `  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD - 1]} command='' word`,
    "  COMPREPLY=()",
    ...find,
    '  case "$command $previous" in',
    ...values,
    "  esac",
    "  if [[ $current == -* ]]; then",
    "    case $command in",
    ...options,
    "    esac",
    "    return",
    "  fi",
    "  case $command in",
    ...args,
    "  esac",
    "}",
    `complete -F ${identifier(name)} ${name}`,
    "",
  ].join("\n");
}

/** In a specification of zsh's `_arguments`, what ends or starts a part of it is escaped. */
function zshText(text: string): string {
  return text.replaceAll(/[\\[\]:]/g, "\\$&");
}

function zshAction({ name, kind }: Value): string {
  const action = kind === "file" ? "_files" : kind === "text" ? " " : `(${kind.join(" ")})`;
  return `:${zshText(name)}:${action}`;
}

function zshSpecs({ options, arguments: args }: Reference): string[] {
  const specs = options.flatMap(({ flags, description, value }) => {
    const exclusive = `(${flags.join(" ")})`;
    const tail = `[${zshText(firstSentence(description))}]${value === undefined ? "" : zshAction(value)}`;
    return flags.map((flag) => quoted(`${exclusive}${flag}${tail}`));
  });
  return [...specs, ...args.map((argument) => quoted(`${argument.variadic ? "*" : ""}${zshAction(argument)}`))];
}

/** The script for zsh: `share/zsh/site-functions/_NAME`. */
export function zshCompletion(reference: Reference): string {
  const { name, commands } = reference;
  const call = (specs: readonly string[], indent: string) => ["_arguments -s", ...specs].join(` \\\n${indent}  `);
  if (commands.length === 0) {
    return [`#compdef ${name}`, call(zshSpecs(reference), ""), ""].join("\n");
  }
  const described = commands.map((sub) => `    ${quoted(`${zshText(sub.name)}:${firstSentence(sub.summary)}`)}`);
  const cases = commands.map((sub) => `      ${sub.name})\n        ${call(zshSpecs(sub), "        ")} ;;`);
  return [
    `#compdef ${name}`,
    `${identifier(name)}() {`,
    "  local curcontext=$curcontext state line",
    "  local -a commands=(",
    ...described,
    "  )",
    `  ${call([...zshSpecs(reference), "'1: :->command'", "'*:: :->rest'"], "  ").replace("-s", "-C -s")}`,
    "  case $state in",
    "  command) _describe command commands ;;",
    "  rest)",
    "    case $line[1] in",
    ...cases,
    "    esac ;;",
    "  esac",
    "}",
    `${identifier(name)} "$@"`,
    "",
  ].join("\n");
}

/** The script for fish: `share/fish/vendor_completions.d/NAME.fish`. */
export function fishCompletion(reference: Reference): string {
  const { name, commands } = reference;
  const head = `complete -c ${name}`;
  const values = ({ kind }: Value) =>
    kind === "file" ? " -r -F" : kind === "text" ? " -x" : ` -x -a ${quoted(kind.join(" "))}`;
  const lines = (condition: string, { options, arguments: args }: Reference) => {
    const choices = choicesOf(args);
    const about = `${head}${condition}`;
    return [
      ...(takesFiles(args) ? [`${about} -F`] : []),
      ...(choices.length > 0 ? [`${about} -a ${quoted(choices.join(" "))}`] : []),
      ...options.map(({ flags, description, value }) => {
        const names = flags.map((flag) => (flag.startsWith("--") ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`));
        const rest = value === undefined ? "" : values(value);
        return `${about} ${names.join(" ")}${rest} -d ${quoted(firstSentence(description))}`;
      }),
    ];
  };
  const seen = (sub: Reference) => ` -n ${quoted(`__fish_seen_subcommand_from ${sub.name}`)}`;
  const first = commands.length === 0 ? "" : " -n __fish_use_subcommand";
  return [
    `# fish completion for ${name}`,
    `${head} -f`,
    ...lines(first, reference),
    ...commands.map((sub) => `${head}${first} -a ${quoted(sub.name)} -d ${quoted(firstSentence(sub.summary))}`),
    ...commands.flatMap((sub) => lines(seen(sub), sub)),
    "",
  ].join("\n");
}
