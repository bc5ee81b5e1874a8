/** Programs of many commands with the original's command line: `vhd-util COMMAND [OPTIONS]` and the like. */

import { constants } from "node:os";
import { refuseForeignBytes } from "./arguments.ts";
import { errnoValue, explain, ToolError, UsageError } from "./failure.ts";
import { getopt, type OptionSpec, type OptionSpecs, type Parsed, referenceOptions } from "./getopt.ts";
import { type Jobs, withJobs } from "./jobs.ts";
import { endProgram, print, say, styled, watchOutput } from "./output.ts";
import { formatExamples, type Manual, version } from "./program.ts";
import type { Reference, ReferenceArgument } from "./reference/model.ts";

const { EINVAL } = constants.errno;

/** What a command of a suite says of itself. */
export interface CommandSpec<S extends OptionSpecs> {
  readonly name: string;
  /** One sentence. */
  readonly summary: string;
  readonly options: S;
  /** What it takes beside options. */
  readonly operands?: readonly ReferenceArgument[];
  /** The text that the original prints when its command line is wrong. */
  readonly usage?: string;
  /** Where it prints that; standard output if nothing is said. */
  readonly usageTo?: "stderr";
  /** The status with which `-h` ends. */
  readonly helpStatus?: number;
  readonly manual?: Manual;
  /** Does it; yields the exit status. */
  readonly run: (parsed: Parsed<S>, jobs: Jobs) => Promise<number>;
}

/** A command of a suite. */
export interface SuiteCommand {
  readonly name: string;
  readonly reference: Reference;
  /** Does what the arguments say; yields the exit status. */
  execute(args: readonly string[]): Promise<number>;
}

/** A program of many commands. */
export interface Suite {
  readonly name: string;
  readonly summary: string;
  readonly manual: Manual;
  readonly commands: readonly SuiteCommand[];
  /** What the original prints when it isn't told what to do. */
  readonly usage: string;
  /** Where it prints it, and the exit statuses without a command and with one that there isn't. */
  readonly usageTo: (line: string) => void;
  readonly noCommandStatus: number;
  readonly badCommandStatus: number;
}

const common: Readonly<Record<"help" | "version", OptionSpec>> = {
  help: { long: "help", description: "print help with examples" },
  version: { long: "version", description: "print the version" },
};

function operandText({ name, required, variadic }: ReferenceArgument): string {
  const text = `${name.toUpperCase()}${variadic ? "..." : ""}`;
  return required ? text : `[${text}]`;
}

/** Help on a command, or on a program with its commands. */
export function helpText(path: string, { summary, options, commands, arguments: operands, manual }: Reference): string {
  const column = (rows: readonly (readonly [string, string])[]) => {
    const width = Math.max(...rows.map(([term]) => term.length));
    return rows.map(([term, text]) => `  ${term.padEnd(width)}  ${text}`).join("\n");
  };
  const words = [
    path,
    ...(commands.length > 0 ? ["COMMAND"] : []),
    ...(options.length > 0 ? ["[OPTIONS]"] : []),
    ...operands.map(operandText),
  ];
  const terms = options.map(({ flags, value, description }): [string, string] => {
    const term = flags.join(", ") + (value === undefined ? "" : ` ${value.name}`);
    return [term, description];
  });
  const parts = [`Usage: ${words.join(" ")}\n\n${summary}\n`];
  if (commands.length > 0) {
    parts.push(`\nCommands:\n${column(commands.map((sub) => [sub.name, sub.summary]))}\n`);
  }
  if (terms.length > 0) parts.push(`\nOptions:\n${column(terms)}\n`);
  parts.push(formatExamples(manual.examples ?? []));
  return parts.join("").trimEnd();
}

/** Makes a command of what it says of itself. `program` is the name of the suite. */
export function suiteCommand<const S extends OptionSpecs>(program: string, spec: CommandSpec<S>): SuiteCommand {
  const specs = { ...spec.options, ...common };
  const reference: Reference = {
    name: spec.name,
    summary: spec.summary,
    manual: spec.manual ?? {},
    options: referenceOptions(specs),
    arguments: spec.operands ?? [],
    commands: [],
  };
  const usage = spec.usage ?? helpText(`${program} ${spec.name}`, reference);
  const printUsage = spec.usageTo === "stderr" ? say : print;
  return {
    name: spec.name,
    reference,
    async execute(args) {
      try {
        refuseForeignBytes();
        const { options, operands } = getopt<OptionSpecs>(specs, args);
        if (options.help === true) {
          print(helpText(`${program} ${spec.name}`, reference));
          return 0;
        }
        if (options.version === true) {
          print(`${program} (tapvhd) ${version}`);
          return 0;
        }
        if (options.h === true) {
          printUsage(usage);
          return spec.helpStatus ?? 0;
        }
        if (operands.length > 0 && spec.operands === undefined) throw new UsageError(`unexpected '${operands[0]}'`);
        const progress = process.stderr.isTTY ? "bar" : "none";
        const parsed = { options, operands } as unknown as Parsed<S>;
        return await withJobs({ progress }, (jobs) => spec.run(parsed, jobs));
      } catch (error) {
        const words = explain(error);
        if (words !== "") say(`${program} ${spec.name}: ${words}`);
        if (error instanceof UsageError) {
          printUsage(usage);
          return EINVAL;
        }
        return (error instanceof ToolError ? error.status : undefined) ?? errnoValue(error);
      }
    },
  };
}

/** A suite as manual pages and completions have it. */
export function suiteReference({ name, summary, manual, commands }: Suite): Reference {
  return {
    name,
    summary,
    manual,
    options: referenceOptions(common),
    arguments: [],
    commands: commands.map(({ reference }) => reference),
  };
}

/** Runs the command that the program's arguments name, and exits. */
export async function runSuite(suite: Suite): Promise<never> {
  watchOutput(suite.name, errnoValue);
  const [name, ...args] = process.argv.slice(2);
  return await endProgram(await dispatch(suite, name, args));
}

async function dispatch(suite: Suite, name: string | undefined, args: readonly string[]): Promise<number> {
  if (name === "--version" || name === "-V") {
    print(`${suite.name} (tapvhd) ${version}`);
    return 0;
  }
  if (name === "--help" || name === "help") {
    print(helpText(suite.name, suiteReference(suite)));
    return 0;
  }
  if (name === undefined) {
    suite.usageTo(suite.usage);
    return suite.noCommandStatus;
  }
  const command = suite.commands.find((one) => one.name === name);
  if (command === undefined) {
    say(`invalid COMMAND ${name}`);
    suite.usageTo(suite.usage);
    say(styled("dim", `(${suite.name} --help tells more)`, process.stderr));
    return suite.badCommandStatus;
  }
  // The original logs more then; here there is nothing to log.
  return await command.execute(args.filter((arg) => arg !== "--debug"));
}
