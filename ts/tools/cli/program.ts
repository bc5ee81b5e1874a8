import { Command, CommanderError } from "commander";
import type * as z from "zod";
import packageJson from "../../../package.json" with { type: "json" };
import { describeIssue, refuseForeignBytes } from "./arguments.ts";
import { explain, ToolError, UsageError } from "./failure.ts";
import { endProgram, say, styled, watchOutput } from "./output.ts";

/** The version of all commands. */
export const version: string = packageJson.version;

/** A command line to learn from. */
export interface Example {
  /** What it does. */
  readonly text: string;
  readonly command: string;
}

/** A section of a manual page. */
export interface Section {
  readonly title: string;
  readonly paragraphs: readonly string[];
}

/** What a manual page says beyond what the command line knows of itself. */
export interface Manual {
  /** Paragraphs behind the summary. */
  readonly details?: readonly string[];
  readonly examples?: readonly Example[];
  /** Exit statuses and their meanings. */
  readonly exitStatus?: readonly (readonly [status: string, meaning: string])[];
  readonly sections?: readonly Section[];
  /** Names of related commands. */
  readonly seeAlso?: readonly string[];
}

/** A command of Commander's with a manual; examples and exit statuses are shown by `--help` as well. */
export class ToolCommand extends Command {
  manual: Manual = {};

  override createCommand(name?: string): ToolCommand {
    return new ToolCommand(name);
  }

  /** Sets the manual. */
  withManual(manual: Manual): this {
    this.manual = manual;
    return this.addHelpText("after", () => helpAfter(manual));
  }

  /** Parses arguments as the user gave them, options and the positional ones by their names. */
  parseArguments<T extends z.ZodType>(schema: T, positional: Readonly<Record<string, unknown>> = {}): z.infer<T> {
    const given = schema.safeParse({ ...this.opts(), ...positional });
    if (!given.success) throw new UsageError(describeIssue(given.error, Object.keys(positional)));
    return given.data;
  }
}

/** The examples, as help shows them. */
export function formatExamples(examples: readonly Example[]): string {
  const lines = examples.map(({ text, command }) => `  ${styled("dim", `# ${text}`)}\n  ${command}`);
  return lines.length === 0 ? "" : `\nExamples:\n${lines.join("\n")}\n`;
}

function helpAfter({ examples = [], exitStatus = [] }: Manual): string {
  const statuses = exitStatus.map(([status, meaning]) => `  ${status.padEnd(4)} ${meaning}`);
  return formatExamples(examples) + (statuses.length === 0 ? "" : `\nExit status:\n${statuses.join("\n")}\n`);
}

/** A new command with `--help` and `--version`. */
export function createTool(name: string, summary: string, manual: Manual): ToolCommand {
  return new ToolCommand(name)
    .description(summary)
    .version(`${name} (tapvhd) ${version}`, "-V, --version", "print the version")
    .helpOption("-h, --help", "print this help")
    .exitOverride()
    .showHelpAfterError(`(${name} --help says how it is used)`)
    .configureOutput({ outputError: (message, write) => write(message.replace(/^error: /, `${name}: `)) })
    .withManual(manual);
}

/** Exit statuses of a command. */
export interface Statuses {
  /** The command line is wrong. */
  readonly usage: number;
  /** The status of anything else that failed. */
  readonly failure: (error: unknown) => number;
}

/** 2 for a wrong command line, 1 for everything else. */
export const ordinaryStatuses: Statuses = { usage: 2, failure: () => 1 };

/**
 * Runs a command with the arguments of this program, says on standard error what is wrong, and exits. An action that is done
 * with another status than 0 sets `process.exitCode`.
 */
export async function runTool(tool: ToolCommand, statuses: Statuses = ordinaryStatuses): Promise<never> {
  watchOutput(tool.name(), statuses.failure);
  try {
    refuseForeignBytes();
    await tool.parseAsync();
  } catch (error) {
    return await endProgram(report(tool.name(), error, statuses));
  }
  // Something that still waits for somebody else must not keep the program.
  return await endProgram();
}

/** Says what went wrong; yields the exit status. */
export function report(name: string, error: unknown, statuses: Statuses): number {
  if (error instanceof CommanderError) {
    // Commander has said what is wrong. Help and version end with 0.
    return error.exitCode === 0 ? 0 : statuses.usage;
  }
  const words = explain(error);
  if (words !== "") say(`${name}: ${words}`);
  if (error instanceof UsageError) {
    say(`(${name} --help says how it is used)`);
    return statuses.usage;
  }
  return (error instanceof ToolError ? error.status : undefined) ?? statuses.failure(error);
}
